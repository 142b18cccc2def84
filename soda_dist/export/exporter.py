"""The entry: a checkpoint of a run, written for timm, ONNX or the Hugging Face Hub."""

import torch
from torch import Tensor

from soda_dist.config.schema import RunConfig
from soda_dist.data.shards import ShardReader, read_manifest
from soda_dist.data.storage.folder import Folder, locate, open_folder
from soda_dist.errors import UserError
from soda_dist.evaluation.views import central_views, pose_columns
from soda_dist.export.encoder import load_encoder
from soda_dist.export.hub_folder import hub_files
from soda_dist.export.onnx_file import check_packages, onnx_bytes
from soda_dist.export.push import check_push, push
from soda_dist.export.timm_folder import timm_files
from soda_dist.parallel.progress import Say, silent
from soda_dist.runs.folder import chosen_steps, open_run
from soda_dist.training.checkpoint import weights_digest

FORMATS = ("timm", "onnx", "hub")
GROUPS, ROWS = 4, 16
"""Row groups of the test split, and rows of each, whose images compare int8 with float; both evenly spaced."""


def export(
    run_uri: str,
    to: str,
    out_uri: str,
    *,
    step: str = "latest",
    int8: bool = False,
    data_uri: str | None = None,
    license_id: str | None = None,
    push_to: str | None = None,
    say: Say = silent,
) -> str:
    """Write the EMA weights of a checkpoint in another format; existing files of the same names are replaced.

    Args:
        to: `timm` (see `timm_files`), `onnx` (`onnx_bytes`) or `hub` (`hub_files`).
        out_uri: a folder; for onnx a file NAME.onnx.
        step: of a complete checkpoint, or `latest`.
        int8: quantise the ONNX file.
        data_uri: prepared data whose test images compare int8 with float.
        license_id: the weights' license for the model card, as the Hub names it.
        push_to: OWNER/NAME, a model repository to upload the folder to.
        say: shows what was checked.

    Returns:
        The URI of the folder, the file or the repository.

    Raises:
        UserError: an unknown format; no such checkpoint; a model that the format cannot hold; a missing package or
            credentials; an output that cannot be written.
        MachineError: the export computes something else than the model; the Hub failed.
    """
    if to not in FORMATS:
        raise UserError("--to", to, ", ".join(FORMATS), "choose one of them")
    if push_to is not None:
        check_push(push_to)
    if to == "onnx":
        return _write_onnx(run_uri, out_uri, step, data_uri, say, int8=int8)
    out, run = open_folder(out_uri), open_run(run_uri)
    at = _one_step(run, step)
    if to == "timm":
        _write(out, timm_files(*load_encoder(run, at, to), say))
        return out.uri
    files = hub_files(run, at, license_id, push_to)
    _write(out, files)
    return out.uri if push_to is None else push(push_to, files)


def _write_onnx(run_uri: str, out_uri: str, step: str, data_uri: str | None, say: Say, *, int8: bool) -> str:
    folder, name = locate(out_uri)
    if not name.endswith(".onnx"):
        raise UserError("--out", out_uri, "a file NAME.onnx", "add the ending")
    check_packages(int8=int8)
    run = open_run(run_uri)
    at = _one_step(run, step)
    encoder, config = load_encoder(run, at, "onnx")
    images = None if data_uri is None else _test_images(open_folder(data_uri), config)
    facts = {"producer": "soda_dist", "step": str(at), "weights_sha256": weights_digest(run, at, ema=True)}
    content = onnx_bytes(encoder, config, facts, say, int8=int8, images=images)
    _write(folder, {name: content})
    return folder.file_uri(name)


def _one_step(run: Folder, wanted: str) -> int:
    steps = chosen_steps(run, wanted)
    if wanted == "all":
        allowed = ", ".join([*map(str, steps), "latest"])
        raise UserError("--step", wanted, allowed, "choose one checkpoint")
    return steps[0]


def _test_images(data: Folder, config: RunConfig) -> Tensor:
    """Read central views of some readable test images as the encoder's input, float32 [n, 3, s, s]."""
    reader = ShardReader(data, read_manifest(data), config.evaluation.test_split)
    count, found = len(reader.groups), []
    for number in sorted({count * place // GROUPS for place in range(GROUPS)}):
        table = reader.group(number, ["image", *pose_columns(config)])
        table = table.take([*range(0, len(table), max(1, len(table) // ROWS))][:ROWS])
        views = central_views(table, config, target=False)
        found.append(views.sources(torch.device("cpu")).images[:, 0][torch.from_numpy(views.ok)])
    images = torch.cat(found)
    if not len(images):
        raise UserError("--data", f"{data.uri} without a readable image", "images", "leave out --data to use noise")
    return images


def _write(out: Folder, files: dict[str, bytes]) -> None:
    try:
        for name, content in files.items():
            out.write(name, content)
    except FileNotFoundError:  # of file systems in which no folder can be made, such as /proc
        raise UserError("--out", out.uri, "a folder that can be written", "choose another folder") from None
