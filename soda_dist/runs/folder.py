"""Layout of a run's folder: its configuration, attempts, checkpoints and results.

Only this file knows these names. They are written to storage, so they must not change.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter

from soda_dist.config.load import dump_config, leaves
from soda_dist.config.older import parse_stored, refuse_to_train, stored_format
from soda_dist.config.provenance import provenance, utc
from soda_dist.config.schema import RunConfig
from soda_dist.config.settle import PRECISION, WARMUP, at_first_start, at_later_start
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.data.storage.metadata import ContentError, check, read_json, read_limited
from soda_dist.errors import UserError
from soda_dist.runs.metrics_log import METRICS, QUARANTINE

CONFIG, PROVENANCE, REPORT = "config.yaml", "provenance.json", "report.html"
CHECKPOINTS, EVALUATIONS, WITHOUT_EMA = "checkpoints", "eval", "without-ema"
BEST = f"{CHECKPOINTS}/best.json"
"""Which checkpoint `train.keep_best` keeps: its step, the metric and the value."""
VALIDATION = "validation"
"""Pictures of held-out rows while the run trains, `STEP.png`."""
TENSORBOARD, TRACKERS = "tensorboard", "trackers.json"
LEASE = "lease.json"
"""Who trains the run at present, see `runs.lease`."""
LOGS = (METRICS, QUARANTINE)
MANIFEST = "manifest.json"
"""Written last into a checkpoint's folder; without it a checkpoint is incomplete."""
DAMAGED = "damaged.json"
"""In a damaged checkpoint's folder in place of the manifest: why, and what the manifest said."""
PARTS = (
    CONFIG, PROVENANCE, REPORT, LEASE, CHECKPOINTS, EVALUATIONS, VALIDATION, TENSORBOARD, TRACKERS, "latents",
    "samples", "ray", *LOGS,
)  # fmt: skip
"""All files and folders of a run; others in its folder are left alone."""
RATE = "optim.lr"
"""What an attempt may change although the weights depend on it; recorded."""
WATCHED = ("train.stop.split", "train.stop.images")
"""Fields that do not matter to the weights while `train.stop` is off."""
Fact = str | int | float | bool | None
_ATTEMPTS: TypeAdapter[Any] = TypeAdapter(
    list[dict[str, Fact | list[Fact] | dict[str, Fact] | list[dict[str, Fact]]]],
)


class _Rollback(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    step: int
    salt: int


class _Initial(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    asked: str
    uri: str
    step: int | None
    digest: str


_INITIAL: TypeAdapter[Any] = TypeAdapter(_Initial)
_ROLLBACKS: TypeAdapter[Any] = TypeAdapter(list[_Rollback])
FREE_SECTIONS = ("scale", "evaluation", "sampling")
FREE_TRAIN_FIELDS = (
    "steps",
    "log_every_steps",
    "checkpoint_every_steps",
    "keep_checkpoints",
    "keep_every_steps",
    "keep_best",
    "micro_batch",
    "max_unreadable",
    "trackers",
    "validation_every_steps",
    "guard.skipped_steps",
    "guard.window_steps",
    "guard.rollbacks",
)
"""With FREE_SECTIONS: what may change between two attempts of a run. The weights depend on everything else."""


def open_run(uri: str, parts: Sequence[str] = PARTS) -> Folder:
    """Return a run's folder, or that of several runs with these `parts`; it need not exist.

    Raises:
        UserError: as `open_folder`, or a symbolic link of the run leads out of its folder: a foreign run could so read
            any file into a report, or replace it.
    """
    run = open_folder(uri)
    if run.is_local:
        root = Path(run.uri).resolve()
        for path in _links(root, parts):
            end = Path(os.path.realpath(path))  # `resolve` fails in a circle of links
            if not end.is_relative_to(root):
                got, remedy = f"a symbolic link to {end}", "replace the link by what it names"
                raise UserError(str(path), got, "links within the run's folder", remedy)
    return run


def _links(root: Path, parts: Sequence[str]) -> Iterator[Path]:
    """Yield the symbolic links among these parts of the folder `root`."""
    for part in (root / name for name in parts):
        inner = (Path(folder, name) for folder, *names in os.walk(part) for name in chain(*names))
        yield from (path for path in chain([part], inner) if path.is_symlink())


def read_config(run: Folder, flag: str = "--run") -> RunConfig:
    """Read the configuration of the run's last start; `flag` names the run in errors.

    Raises:
        UserError: the folder has no configuration, or one of a newer release.
    """
    require_run(run, flag)
    return parse_stored(config_text(run), run.file_uri(CONFIG))


def require_run(run: Folder, flag: str = "--run") -> None:
    """Raise a `UserError` about `flag` if the folder has no configuration."""
    if not run.exists(CONFIG):
        raise UserError(flag, f"{run.uri}, which has no {CONFIG}", "the folder of a run", "check the URI")


def config_text(run: Folder) -> str:
    """Return the configuration as stored; empty if the folder has none."""
    try:
        return read_limited(run, CONFIG).decode()
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError:
        raise UserError(run.file_uri(CONFIG), "text that is not UTF-8", "YAML in UTF-8", "restore the file") from None


def write_config(run: Folder, config: RunConfig) -> None:
    """Store `config` as the run's."""
    run.write(CONFIG, dump_config(config).encode())


def attempts(run: Folder) -> list[dict[str, Any]]:
    """Return the provenance of each start of the run, oldest first."""
    if not run.exists(PROVENANCE):
        return []
    found: list[dict[str, Any]] = read_json(run, PROVENANCE)
    check(_ATTEMPTS, found, run.file_uri(PROVENANCE), "the facts of each start, as written")
    return found


def claim(
    run: Folder,
    config: RunConfig,
    data: dict[str, Any] | None = None,
    *,
    accept_data: bool = False,
    initial: dict[str, Any] | None = None,
) -> RunConfig:
    """Store the configuration and the provenance of a new attempt; return the configuration to train.

    That is `config` with what the first attempt resolves, see `config.settle`; `precision: auto` of a first attempt is
    left to its workers.

    Args:
        data: what it trains on: `uri`, `digest` and `rows`; kept with the provenance.
        accept_data: whether an earlier attempt may have trained on data with another digest.
        initial: the weights that a new run begins with, see `begun_from`.

    Raises:
        UserError: an earlier attempt is of an older format, has another value in a field that the weights depend on, or
            trained on other data.
    """
    text, asked, earlier = config_text(run), config.optim.warmup_steps, attempts(run)
    stored = None
    if text:
        refuse_to_train(run.uri, stored_format(text, run.file_uri(CONFIG)))
        stored = read_config(run)
        before = {entry["asked"].get(WARMUP) for entry in earlier if isinstance(entry.get("asked"), dict)}
        config = at_later_start(config, stored, before)
    else:
        config = at_first_start(config)
    if stored is not None and (difference := _difference(stored, config)) is not None:
        field, old, new = difference
        raise UserError(field, f"{new}, but the run at {run.uri} has {old}", "the run's own value", "use another --run")
    known = [attempt["data"]["digest"] for attempt in earlier if attempt.get("data")]
    if data and known and known[-1] != data["digest"] and not accept_data:
        got = f"{data['uri']} with digest {data['digest'][:12]}, but the run trained on {known[-1][:12]}"
        raise UserError("--data", got, "the run's own data", "restore it, or add --accept-changed-data")
    facts = provenance() | ({"data": data} if data else {}) | ({"initial": initial} if initial and not text else {})
    if stored is not None and stored.optim.lr != config.optim.lr:
        step = max(complete_steps(run), default=0)
        facts["changed"] = {"field": RATE, "from": stored.optim.lr, "to": config.optim.lr, "step": step}
    write_config(run, config)
    if asked != config.optim.warmup_steps:
        facts["asked"] = {WARMUP: asked}
    run.write_json(PROVENANCE, [*earlier, facts])
    return config


def begun_from(run: Folder) -> dict[str, Any] | None:
    """Return the weights that the run began with: `asked`, `uri`, `step` and `digest`; None = random ones."""
    found = next((entry["initial"] for entry in attempts(run) if "initial" in entry), None)
    if found is not None:
        check(_INITIAL, found, run.file_uri(PROVENANCE), "initial weights, as written")
    return found


def changed_rate(run: Folder) -> str | None:
    """Return the line that says how the latest attempt changed the learning rate; None = not at all."""
    changed = (attempts(run) or [{}])[-1].get("changed")
    if not isinstance(changed, dict):
        return None
    return (
        f"{changed.get('field')}: {changed.get('to')} from step {changed.get('step')} on, {changed.get('from')} before"
    )


def record_stop(run: Folder, step: int, reason: str) -> None:
    """Note in the provenance of the latest attempt that `train.stop` ended the run at `step`; once."""
    entries = attempts(run)
    if entries and "stopped" not in entries[-1]:
        run.write_json(PROVENANCE, [*entries[:-1], entries[-1] | {"stopped": {"step": step, "reason": reason}}])


def record_end(run: Folder, reason: str) -> None:
    """Note in the provenance of the latest attempt that it is over, and why; once."""
    entries = attempts(run)
    if entries and "ended" not in entries[-1]:
        ended = {"time": utc(), "reason": reason}
        run.write_json(PROVENANCE, [*entries[:-1], entries[-1] | {"ended": ended}])


def record_rollback(run: Folder, step: int, reason: str) -> int:
    """Note in the provenance of the latest attempt that the run went back to `step`; return how often this one did.

    Each rollback has a salt of its own, from which the random numbers after its step derive.
    """
    entries = attempts(run) or [provenance()]
    salt = 1 + max((entry["salt"] for entry in rollbacks(run)), default=0)
    mine = [*entries[-1].get("rollbacks", []), {"step": step, "salt": salt, "reason": reason, "time": utc()}]
    run.write_json(PROVENANCE, [*entries[:-1], entries[-1] | {"rollbacks": mine}])
    return len(mine)


def rollbacks(run: Folder, *, this_start: bool = False) -> list[dict[str, Any]]:
    """Return `step`, `salt`, `reason` and `time` of the run's rollbacks, or those of its latest attempt alone."""
    entries = attempts(run)
    found = [each for entry in entries[-1 if this_start else 0 :] for each in entry.get("rollbacks", [])]
    check(_ROLLBACKS, found, run.file_uri(PROVENANCE), "rollbacks, as written")
    return found


def stopped_step(run: Folder) -> int | None:
    """Return the step at which `train.stop` ended the run; None if it did not."""
    for entry in attempts(run):
        stopped = entry.get("stopped")
        if isinstance(stopped, dict) and isinstance(stopped.get("step"), int):
            return stopped["step"]
    return None


def _difference(before: RunConfig, now: RunConfig) -> tuple[str, Any, Any] | None:
    old, new = leaves(before.model_dump()), leaves(now.model_dump())
    for field, value in new.items():
        section, _, name = field.partition(".")
        free = section in FREE_SECTIONS or (section == "train" and name in FREE_TRAIN_FIELDS)
        unresolved = field == PRECISION and old.get(field) == "auto"  # its first attempt ended before training began
        watched = field in WATCHED and before.train.stop.metric == now.train.stop.metric == "none"
        if not (free or unresolved or watched or field == RATE) and old.get(field) != value:
            return field, old.get(field), value
    return None


def checkpoint_folder(run: Folder, step: int) -> Folder:
    """Return the folder of the checkpoint of `step`, complete or not."""
    return run.child(f"{CHECKPOINTS}/{step:09d}")


def complete_steps(run: Folder) -> list[int]:
    """List the steps of complete checkpoints, ascending; other folders beside them, such as copies, do not count."""
    return sorted(step for step, name in _checkpoint_files(run) if name == MANIFEST)


def begun_steps(run: Folder) -> list[int]:
    """List the steps of checkpoints, complete or not, ascending."""
    return sorted({step for step, _ in _checkpoint_files(run)})


def _checkpoint_files(run: Folder) -> Iterator[tuple[int, str]]:
    for entry in run.list(f"{CHECKPOINTS}/"):
        folder, _, name = entry.name.removeprefix(f"{CHECKPOINTS}/").partition("/")
        step = parse_step(folder)
        if step is not None and folder == f"{step:09d}":
            yield step, name


def remove_checkpoint(run: Folder, step: int) -> None:
    """Remove a checkpoint; the manifest first, so that an interrupted removal leaves an incomplete one."""
    folder = checkpoint_folder(run, step)
    with suppress(FileNotFoundError):
        folder.remove(MANIFEST)
    folder.remove_tree("")


def set_aside(run: Folder, step: int, reason: str) -> None:
    """Make a damaged checkpoint incomplete; its files stay until training reaches the step again."""
    folder = checkpoint_folder(run, step)
    try:
        manifest = read_limited(folder, MANIFEST).decode(errors="replace")
    except (ContentError, FileNotFoundError):
        manifest = ""
    folder.write_json(DAMAGED, {"reason": reason, "time": utc(), MANIFEST: manifest})
    with suppress(FileNotFoundError):
        folder.remove(MANIFEST)


def parse_step(text: str) -> int | None:
    """Parse a step, up to 12 decimal digits; None for any other text."""
    return int(text) if re.fullmatch("[0-9]{1,12}", text) else None


def chosen_steps(run: Folder, wanted: str, flag: str = "--run") -> list[int]:
    """Resolve `wanted`, a step, `latest` or `all`, to steps of complete checkpoints; `flag` names the run in errors.

    Raises:
        UserError: no complete checkpoint, or none of this step.
    """
    steps = complete_steps(run)
    if not steps:
        raise UserError(flag, f"{run.uri}, which has no complete checkpoint", "a trained run", "pretrain first")
    if wanted == "all":
        return steps
    if wanted == "latest":
        return steps[-1:]
    step = parse_step(wanted)
    if step not in steps:
        allowed = ", ".join([*map(str, steps), "latest", "all"])
        raise UserError("--step", wanted, allowed, "choose a complete checkpoint")
    return [step]


def evaluation_folder(run: Folder, step: int, *, ema: bool) -> Folder:
    """Return the folder of a checkpoint's results and pictures."""
    return run.child(f"{EVALUATIONS}/{step}" if ema else f"{EVALUATIONS}/{step}/{WITHOUT_EMA}")


def latents_folder(run: Folder, address: str) -> Folder:
    """Return the folder of the extracted latents of this address, which has a folder per split."""
    return run.child(f"latents/{address}")


def samples_folder(run: Folder, address: str) -> Folder:
    """Return the folder of the generated samples of this address."""
    return run.child(f"samples/{address}")


def validation_picture(step: int) -> str:
    """Return the name of the picture of held-out images at a step."""
    return f"{VALIDATION}/{step:09d}.png"


def scratch_folder(run: Folder) -> Folder:
    """Return the folder for files that a training attempt needs only while it runs."""
    return run.child("ray")
