"""Checkpoints: complete or absent, free of pickle, and readable on any number of workers; `CheckpointWriter` writes.

`checkpoints/STEP/` contains:
- `state-RANK-of-WORLD-PART.safetensors`: the fragments that each rank owns, as tensors KIND/PARAMETER/START;
- `buffers.safetensors`: running statistics;
- `model.safetensors` and, if an encoder is trained, `encoder.safetensors`: EMA weights with plain names;
- `online_probe.safetensors`: an online probe with its optimizer state;
- `stop.json`: the state of `train.stop`, if it is on;
- `config.json`, and `manifest.json`, written last: a folder without it is incomplete.
Resuming reads a frozen encoder from `encoder.weights`, not from the checkpoint.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from soda_dist.config.older import FORMAT, parse_stored, refuse_to_train
from soda_dist.config.schema import RunConfig
from soda_dist.data.storage.folder import Folder
from soda_dist.data.storage.metadata import ContentError, parse_json, read_json, read_limited
from soda_dist.errors import UserError
from soda_dist.metrics.probe import LinearProbe
from soda_dist.models.lr_equalization import load_plain_state_dict
from soda_dist.models.method import Method
from soda_dist.runs.folder import MANIFEST, checkpoint_folder, chosen_steps
from soda_dist.training.build import build_model
from soda_dist.training.checkpoint_exports import MODEL
from soda_dist.training.checkpoint_files import (
    BUFFERS,
    ONLINE_PROBE,
    REMEDY,
    STOP,
    check_manifest,
    check_size,
    listed,
    model_bytes,
    parse_state_key,
    parse_tensors,
    read_file,
    read_tensors,
    state_prefix,
    verify,
)
from soda_dist.training.context import WorkerContext
from soda_dist.training.early_stop import Patience, restored
from soda_dist.training.engines.engine import KINDS, Engine, Fragment
from soda_dist.training.online_probe import OnlineProbe, check_probe, linear_probe
from soda_dist.training.snapshot import saved_buffers
from soda_dist.weights import fill

LARGEST_STATE = 1 << 36
"""Size limit in bytes of a file of state or of a model."""


def ema_model(engine: Engine, ema: dict[str, Tensor], config: RunConfig) -> Method:
    """Build the model of the EMA weights, as `ema_weights` gives them, with the live buffers, on the CPU."""
    live = engine.objective.model.state_dict(keep_vars=True)
    buffers = {name: value.detach().cpu() for name, value in live.items() if not isinstance(value, nn.Parameter)}
    model = build_model(config)
    model.load_state_dict({name.removeprefix("model."): value for name, value in ema.items()} | buffers)
    return model


def read_manifest(run: Folder, step: int) -> dict[str, Any]:
    """Read the manifest of a complete checkpoint.

    Raises:
        ContentError: damaged.
        UserError: a newer release wrote it.
    """
    folder = checkpoint_folder(run, step)
    try:
        manifest = read_json(folder, MANIFEST)
    except FileNotFoundError:
        raise ContentError(folder.file_uri(MANIFEST), "nothing", "a manifest", REMEDY) from None
    version = manifest.get("version") if isinstance(manifest, dict) else None
    if isinstance(version, int) and version not in range(1, FORMAT + 1):
        raise UserError(folder.uri, f"version {version}", f"1 to {FORMAT}", "use the release that wrote it")
    check_manifest(manifest, folder.file_uri(MANIFEST), step)
    return manifest


def restore(run: Folder, step: int, engine: Engine, context: WorkerContext) -> None:
    """Read the checkpoint of `step` into `engine`; any engine and number of workers may have written it.

    Call on every rank. Raises as `read_into`.
    """
    engine.restored(read_into(run, step, engine, context))


def read_into(run: Folder, step: int, engine: Engine, context: WorkerContext) -> int:
    """Overwrite the fragments, buffers and online probe of `engine`; return the updates for `Engine.restored`.

    Calls no other rank, but each file of the checkpoint is verified on one rank at least.

    Raises:
        ContentError: damaged; `engine` may then be of this step in part.
        UserError: an older format, or a checkpoint of another model.
    """
    folder, manifest = checkpoint_folder(run, step), read_manifest(run, step)
    refuse_to_train(run.uri, manifest["version"])
    probe = engine.objective.online_probe
    read = {BUFFERS} if probe is None else {BUFFERS, ONLINE_PROBE}
    unread = [entry for entry in manifest["files"] if not entry["name"].startswith("state-")]
    unread = [entry for entry in unread if entry["name"] not in read]
    for entry in unread[context.rank :: context.world]:
        verify(folder, entry)
    _fill_state(folder, manifest, _state_files(manifest, context), list(engine.fragments()), KINDS)
    buffers = read_tensors(folder, manifest, BUFFERS)
    fill(saved_buffers(engine.objective.model), buffers, field=f"{folder.uri}/{BUFFERS}", network="the run's model")
    if probe is not None:
        _restore_probe(probe, folder, manifest)
    return int(manifest["updates"])


def _fill_state(
    folder: Folder, manifest: dict[str, Any], names: Sequence[str], pieces: list[Fragment], kinds: Sequence[str]
) -> None:
    """Fill the tensors of `pieces` from state files, as few as suffice."""
    missing = {(p.name, p.start, kind): p.length for p in pieces for kind in kinds}
    read: dict[tuple[str, str], list[range]] = defaultdict(list)
    for name in names:
        if not any(missing.values()):
            break
        where = f"{folder.uri}/{name}"
        for key, values in read_tensors(folder, manifest, name, LARGEST_STATE).items():
            kind, parameter, start = parse_state_key(key, values, KINDS, where)
            part = range(start, start + len(values))
            if any(max(part.start, other.start) < min(part.stop, other.stop) for other in read[kind, parameter]):
                raise ContentError(where, f"{key} twice", "each value once", REMEDY)
            read[kind, parameter].append(part)
            if kind in kinds:
                _copy_overlaps(key, values, pieces, missing)
    if any(missing.values()):
        parameter = next(key for key, left in missing.items() if left)[0]
        raise UserError(folder.uri, f"no state for {parameter}", "every parameter", "use the run's own configuration")


def _restore_probe(probe: OnlineProbe, folder: Folder, manifest: dict[str, Any]) -> None:
    state, where = _read_probe(folder, manifest), f"{folder.uri}/{ONLINE_PROBE}"
    have, want = state["shape"].tolist(), probe.shape.tolist()
    if have != want or state["layer"].shape != probe.layer.shape:
        got, allowed = (f"{heads or 'no'} attributes, {classes} classes" for heads, classes in (have, want))
        raise UserError(where, got, allowed, "train on the run's original data")
    fill(probe.state_dict(), state, field=where, network="the run's online probe")


def _read_probe(folder: Folder, manifest: dict[str, Any]) -> dict[str, Tensor]:
    if all(entry["name"] != ONLINE_PROBE for entry in manifest["files"]):
        remedy = "start a new run with train.online_probe=true"
        raise UserError(folder.uri, "no online probe", "a run with an online probe", remedy)
    state = read_tensors(folder, manifest, ONLINE_PROBE)
    check_probe(state, f"{folder.uri}/{ONLINE_PROBE}")
    return state


def read_patience(run: Folder, step: int) -> Patience | None:
    """Read the state of `train.stop` at `step`; None if the run had none."""
    folder, manifest = checkpoint_folder(run, step), read_manifest(run, step)
    if all(entry["name"] != STOP for entry in manifest["files"]):
        return None
    where = folder.file_uri(STOP)
    return restored(parse_json(read_file(folder, manifest, STOP), where), where)


def load_online_probe(run: Folder, step: int) -> LinearProbe:
    """Load the online probe of `step`; raise `UserError` if the run trained none."""
    folder, manifest = checkpoint_folder(run, step), read_manifest(run, step)
    config = parse_stored(read_file(folder, manifest, "config.json"), f"{folder.uri}/config.json")
    return linear_probe(_read_probe(folder, manifest), config.train.online_probe_lr)


def _state_files(manifest: dict[str, Any], context: WorkerContext) -> list[str]:
    """List the state files, this rank's first: they suffice if the number of workers is unchanged."""
    names = sorted(entry["name"] for entry in manifest["files"] if entry["name"].startswith("state-"))
    own = state_prefix(context.rank, context.world)
    return sorted(names, key=lambda name: not name.startswith(own))


def _copy_overlaps(key: str, values: Tensor, pieces: list[Fragment], missing: dict[tuple[str, int, str], int]) -> None:
    kind, rest = key.split("/", 1)
    name, text = rest.rsplit("/", 1)
    start = int(text)
    for piece in pieces:
        if piece.name != name:
            continue
        low, high = max(start, piece.start), min(start + values.numel(), piece.start + piece.length)
        if low < high:
            piece.tensors[kind][low - piece.start : high - piece.start].copy_(values[low - start : high - start])
            missing[piece.name, piece.start, kind] -= high - low


def load_model(run: Folder, step: int | None = None, *, ema: bool = True) -> tuple[Method, RunConfig, int]:
    """Load a run's model in eval mode, its configuration and its step (None = latest); without `ema`, live weights."""
    (step,) = chosen_steps(run, "latest" if step is None else str(step))
    folder, manifest = checkpoint_folder(run, step), read_manifest(run, step)
    config = parse_stored(read_file(folder, manifest, "config.json"), f"{folder.uri}/config.json")
    where = f"{folder.uri}/{MODEL}"
    check_size(listed(folder, manifest, MODEL)["bytes"], model_bytes(config), where)
    model = _filled(config, read_tensors(folder, manifest, MODEL, LARGEST_STATE), where)
    if not ema:
        _fill_live(model, folder, manifest)
    return model.eval().requires_grad_(False), config, step


def exported_config(folder: Folder) -> RunConfig:
    """Read the `config.json` of a folder with `model.safetensors` and `config.json` alone; raises `UserError`."""
    try:
        return parse_stored(read_limited(folder, "config.json"), folder.file_uri("config.json"))
    except FileNotFoundError:
        raise _incomplete(folder, "config.json") from None


def load_exported(folder: Folder) -> tuple[Method, RunConfig]:
    """Load the EMA model of such a folder, in eval mode, and its configuration.

    Raises:
        UserError: a file is missing or damaged, or the two do not belong together.
    """
    config, where = exported_config(folder), folder.file_uri(MODEL)
    try:
        with folder.open(MODEL) as file:
            check_size(file.size(), model_bytes(config), where)
        tensors = parse_tensors(folder.read(MODEL), where)
    except FileNotFoundError:
        raise _incomplete(folder, MODEL) from None
    return _filled(config, tensors, where).eval().requires_grad_(False), config


def _incomplete(folder: Folder, name: str) -> UserError:
    return UserError(folder.uri, f"a folder without {name}", f"{MODEL} with its config.json", "copy both files")


def _filled(config: RunConfig, tensors: dict[str, Tensor], where: str) -> Method:
    """Build the model of `config` with the plainly named `tensors` of the file `where`."""
    model = build_model(config)
    try:
        load_plain_state_dict(model, tensors)
    except ValueError as error:
        raise UserError(where, str(error), "the tensors of config.json's model", REMEDY) from None
    return model


def _fill_live(model: Method, folder: Folder, manifest: dict[str, Any]) -> None:
    """Replace the EMA of the parameters by their live values; buffers have no EMA."""
    pieces = [
        Fragment(f"model.{name}", 0, parameter.numel(), {"param": parameter.data.view(-1)})
        for name, parameter in model.named_parameters()
    ]
    names = [entry["name"] for entry in manifest["files"] if entry["name"].startswith("state-")]
    _fill_state(folder, manifest, names, pieces, ("param",))


def weights_digest(run: Folder, step: int, *, ema: bool) -> str:
    """Compute SHA-256 over the digests of the files that `load_model` reads."""
    prefixes = ("model.", "config.") if ema else ("model.", "config.", "state-")
    files = read_manifest(run, step)["files"]
    chosen = sorted(f"{entry['name']} {entry['sha256']}" for entry in files if entry["name"].startswith(prefixes))
    return hashlib.sha256("\n".join(chosen).encode()).hexdigest()
