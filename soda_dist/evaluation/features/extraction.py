"""Latents of a split, extracted by workers, beside those of an untrained encoder and raw pixels.

They stay as Parquet in the run's `latents/ADDRESS/SPLIT/`, a file for each piece of the split: `key`, `name`, whether
the image was readable, every label of the data set, and a column of vectors for each encoder.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from soda_dist.config.schema import RunConfig
from soda_dist.data.storage.folder import Folder
from soda_dist.errors import UserError
from soda_dist.evaluation.piece_cache import address, load, store
from soda_dist.evaluation.pieces import MODEL_SECTIONS, Features, Piece, Point
from soda_dist.evaluation.views import EvaluationViews, addressed_noise, augmented_views, central_views, pose_columns
from soda_dist.evaluation.worker import Models, rows_of
from soda_dist.models.encoder_only import EncoderAlone
from soda_dist.models.method import DiffusionMethod, Method
from soda_dist.models.pixels import raw_pixels, target_input
from soda_dist.models.soda import Encoding
from soda_dist.parallel.pool import Pool
from soda_dist.parallel.progress import Say
from soda_dist.runs.folder import latents_folder


@torch.no_grad()
def extract(models: Models, piece: Piece) -> pa.Table:
    """Read, decode and encode a piece; a worker's job.

    Returns:
        The piece's rows: `key`, `name`, `ok` (bool, whether the image could be read), the data set's labels as int64,
        and vectors `trained` and `untrained` (float32) and `pixels` (uint8), or one for each of several points; where
        not ok they are meaningless.

    Raises:
        UserError: a shard is damaged.
    """
    reader = models.reader[piece.split]
    labels = list(reader.manifest.labels)
    table = rows_of(reader, piece, ["key", "image", "name", *labels, *pose_columns(models.config)])
    keys = piece.keys
    if not np.array_equal(table.column("key").to_numpy(), keys):
        raise RuntimeError(f"rows {piece.first_row} and on of {piece.split} have keys other than their ordinals")
    see = central_views if piece.number is None else partial(augmented_views, number=piece.number)
    seen = see(table, models.config, target=bool(piece.points))
    parts: list[dict[str, Tensor]] = []
    for at in range(0, piece.rows, models.config.evaluation.batch):
        rows = slice(at, at + models.config.evaluation.batch)
        parts.append(_arrays(models, seen.rows(rows), keys[rows], piece))
    columns = {name: table.column(name).combine_chunks() for name in ("key", "name")}
    columns["ok"] = pa.array(seen.ok)
    columns |= {f"label/{name}": table.column(name).cast(pa.int64()).combine_chunks() for name in labels}
    vectors = {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
    return pa.table(columns | {f"vector/{name}": _vectors(array) for name, array in vectors.items()})


def _vectors(array: NDArray[Any]) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[1])


def _arrays(models: Models, seen: EvaluationViews, keys: NDArray[np.int64], piece: Piece) -> dict[str, Tensor]:
    """A batch's rows by encoder; at several points, those of the trained model alone, by the point's text."""
    points, draw = piece.points, 0 if piece.number is None else piece.number + 1
    if len(points) > 1:
        read = activations(models, models.model, seen, keys, points, draw)
        return {str(point): read[point] for point in points}
    arrays = {}
    for name in ("trained", "untrained") if models.config.evaluation.baselines else ("trained",):
        model = models.model if name == "trained" else models.untrained
        if points:
            arrays[name] = activations(models, model, seen, keys, points, draw)[points[0]]
        else:
            arrays[name] = encode_views(model, seen, models.device)
    if models.config.evaluation.baselines:
        arrays["pixels"] = raw_pixels(torch.from_numpy(seen.source))
    return arrays


@torch.no_grad()
def encode_views(model: Method | EncoderAlone, seen: EvaluationViews, device: torch.device) -> Tensor:
    """Encode each view alone: float32 [n, D] on the CPU; without a bottleneck the mean over the grid."""
    assert isinstance(model, Encoding | EncoderAlone)
    z = model.encode(seen.sources(device))
    return (z.mean(1) if z.ndim == 3 else z).float().cpu()


def activations(
    models: Models,
    model: Method | EncoderAlone,
    seen: EvaluationViews,
    keys: NDArray[np.int64],
    points: tuple[Point, ...],
    draw: int = 0,
) -> dict[Point, Tensor]:
    """Read the denoiser at `points`: float32 [n, C] each, on the CPU.

    `draw` and a row's key (`keys`, [n]) address its noise.
    """
    assert isinstance(model, DiffusionMethod)
    sources = seen.sources(models.device)
    target = target_input(torch.from_numpy(seen.target)).to(models.device)
    pose = None if sources.poses is None else sources.poses[:, 0]
    condition = model.condition(sources, pose, None, None)
    found: dict[Point, Tensor] = {}
    for t in sorted({point.t for point in points}):
        eps = addressed_noise(models.config.seed, keys, t, draw, target.shape[-1]).to(models.device)
        read = model.activations(target, condition, t, eps)
        found |= {point: read[point.layer].cpu() for point in points if point.t == t}
    return found


def place_of(
    root: Folder,
    config: RunConfig,
    weights: str,
    shards: Sequence[str],
    points: Sequence[Point],
    *,
    passes: bool = False,
) -> Folder:
    """Name the folder of a split's latents by everything that decides them.

    Args:
        root: the run's folder.
        weights: digest of the checkpoint.
        shards: digests of the split's shards, and of the training split's, from which an untrained encoder takes
            statistics.
        points: where the denoiser is read.
        passes: latents of augmented views; all passes lie in one folder.
    """
    e = config.evaluation
    facts: dict[str, Any] = {
        "weights": weights,
        "shards": shards,
        "points": [str(point) for point in points],
        # All that the initial weights, the views and the noise depend on.
        "config": config.model_dump(mode="json", include=set(MODEL_SECTIONS)),
        "precision": config.train.precision,
        "evaluation": [e.batch, e.train_split, e.baselines],
    } | ({"crop_flip_rate": e.probe.crop_flip_rate} if passes else {})
    return latents_folder(root, address(facts))


def collect(workers: Pool, place: Folder, pieces: list[Piece], say: Say) -> Features:
    """Compute or read the features of all pieces.

    Raises:
        UserError: the model gives values that are not finite.
    """
    return read_features(write_latents(workers, place, pieces, say), pieces)


def write_latents(workers: Pool, place: Folder, pieces: list[Piece], say: Say) -> Folder:
    """Compute the pieces that are not cached; return the folder of the split, which then holds all."""
    split = pieces[0].split
    folder = place.child(split)
    passes = len({piece.number for piece in pieces} - {None})
    what = f"latents of {split}" + (f", {passes} augmented passes" if passes else "")
    store(workers, folder, extract, pieces, say, what)
    return folder


def read_features(folder: Folder, pieces: Sequence[Piece]) -> Features:
    """Read the features that `write_latents` stored.

    Raises:
        UserError: values that are not finite.
    """
    keys = np.concatenate([piece.keys for piece in pieces])
    total = len(keys)
    arrays: dict[str, NDArray[Any]] = {}
    facts, at = [], 0
    for piece in pieces:
        table = load(folder, piece)
        ok = table.column("ok").to_numpy()
        for name in (name for name in table.column_names if name.startswith("vector/")):
            column = table.column(name).combine_chunks()
            rows = column.flatten().to_numpy().reshape(len(column), -1)[ok]
            whole = arrays.setdefault(name.removeprefix("vector/"), np.empty((total, rows.shape[1]), rows.dtype))
            whole[at : at + len(rows)] = rows
        facts.append(table.select([name for name in table.column_names if not name.startswith("vector/")]))
        at += int(ok.sum())
    rows = pa.concat_tables(facts)
    if not np.array_equal(rows.column("key").to_numpy(), keys):
        raise RuntimeError(f"{folder.uri} lacks rows or has some twice")
    arrays = {name: array[:at] for name, array in arrays.items()}
    for name, array in arrays.items():
        if name not in ("untrained", "pixels"):
            check_finite(not_finite(array), pieces[0].split)
    return features_of(pieces[0].split, rows, rows.column("ok"), arrays)


def features_of(
    split: str, rows: pa.Table, ok: pa.Array | pa.ChunkedArray, arrays: dict[str, NDArray[Any]]
) -> Features:
    """Make the features of the `ok` rows; `arrays` holds the vectors of these alone."""
    labels = [name for name in rows.column_names if name.startswith("label/")]
    kept = rows.filter(ok).select(labels).rename_columns([name.removeprefix("label/") for name in labels])
    keys = rows.filter(ok).column("key").to_numpy()
    return Features(split, keys, kept, arrays, rows.filter(pc.invert(ok)).column("name").to_pylist())


def not_finite(latents: NDArray[Any]) -> int:
    """Count the rows that hold a value that is not finite."""
    return sum(int((~np.isfinite(part)).any(axis=1).sum()) for part in _blocks(latents))


def check_finite(bad: int, split: str) -> None:
    """Raise a `UserError` if `bad` latents of a trained encoder are not finite."""
    if bad:
        got = f"an encoder with {bad} latents of {split} that are not finite"
        raise UserError("--run", got, "a run that did not diverge", "evaluate an earlier step or lower optim.lr")


def _blocks(array: NDArray[Any], rows: int = 65536) -> Iterator[NDArray[Any]]:
    for start in range(0, len(array), rows):
        yield array[start : start + rows]
