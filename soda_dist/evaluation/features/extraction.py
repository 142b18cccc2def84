"""Latents of a split, extracted by actors, beside those of an untrained encoder and raw pixels.

They stay as Parquet in the run's `latents/ADDRESS/SPLIT/`, a file for each piece of the split: `key`, `name`, whether
the image was readable, every label of the data set, and a column of vectors for each encoder.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from soda_dist.config.schema import RunConfig
from soda_dist.data.shards import Manifest, ShardReader, read_manifest
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.distributed.runtime.actor_pool import Crew
from soda_dist.distributed.runtime.cluster import Say
from soda_dist.errors import UserError
from soda_dist.evaluation.model_sources import Origin
from soda_dist.evaluation.piece_cache import address, load, store
from soda_dist.evaluation.views import Centred, addressed_noise, augmented, centred, pose_columns
from soda_dist.models.encoder import Encoder
from soda_dist.models.encoder_only import EncoderAlone
from soda_dist.models.method import DiffusionMethod, Method
from soda_dist.models.norms import settle_norms
from soda_dist.models.pixels import raw_pixels, source_input, target_input
from soda_dist.models.soda import Encoding
from soda_dist.training.build import build_model

MODEL_SECTIONS = (
    "seed",
    "method",
    "data",
    "encoder",
    "aggregation",
    "pose",
    "denoiser",
    "diffusion",
)
"""Of the configuration: what a model's initial weights and its views are a function of."""
NORM_ROWS = 256
"""Training images that give an untrained encoder's batch norms their statistics."""
UNTRAINED = (
    "the same architecture with the initial weights of the run's seed; batch norms, if any, have the statistics of "
    f"the first {NORM_ROWS} training images"
)


@dataclass(frozen=True)
class Point:
    """Where a denoiser is read: a layer, and the index of a noise level, 0..T-1."""

    layer: str
    t: int

    def __str__(self) -> str:
        return f"{self.layer} at t = {self.t + 1}"


@dataclass
class Models:
    """What an actor holds. `config` gives sizes and evaluation; the networks are as their checkpoint says."""

    model: Method | EncoderAlone
    config: RunConfig
    reader: dict[str, ShardReader]
    device: torch.device
    fresh: Callable[[RunConfig], Method | EncoderAlone] = build_model
    """Makes the model as it was before training."""
    kept: dict[Any, Any] = field(default_factory=dict)
    """What jobs keep from one piece to the next."""

    @cached_property
    def untrained(self) -> Method | EncoderAlone:
        """The model before training, fit for eval mode; made on first use."""
        fresh = self.fresh(self.config).to(self.device).eval().requires_grad_(False)
        encoder = getattr(fresh, "encoder", None)
        if isinstance(encoder, Encoder):
            settle_norms(encoder, self._first_training_batches())
        return fresh

    @property
    def method(self) -> Method:
        """The model as one that draws; tasks that need it are refused for an encoder alone."""
        assert isinstance(self.model, Method)
        return self.model

    def _first_training_batches(self) -> list[tuple[Tensor, Tensor | None, None]]:
        """What the encoder takes, whole batches of the first training images (one that is not, if they are fewer)."""
        split, batch = self.config.evaluation.train_split, self.config.evaluation.batch
        reader = self.reader[split]
        piece = plan_pieces(split, reader.groups, NORM_ROWS, NORM_ROWS)[0]
        seen = centred(rows_of(reader, piece, ["image", *pose_columns(self.config)]), self.config, target=False)
        images = source_input(torch.from_numpy(seen.source[seen.ok])).to(self.device)
        poses = None if seen.pose is None else torch.from_numpy(seen.pose[seen.ok]).to(self.device)
        starts = range(0, max(len(images) // batch * batch, 1), batch)
        return [(images[at : at + batch], None if poses is None else poses[at : at + batch], None) for at in starts]


def load_models(origin: Origin, data_uri: str, config: RunConfig, device: str) -> Models:
    """What an actor sets itself up with: the networks, and readers of the splits of evaluation."""
    import cv2

    cv2.setNumThreads(1)  # an actor has one CPU
    model = origin.load().to(device).eval()
    return Models(model, config, readers(data_uri, config), torch.device(device), origin.fresh)


def readers(data_uri: str, config: RunConfig) -> dict[str, ShardReader]:
    """A reader of each split of evaluation, by name."""
    folder = open_folder(data_uri)
    manifest = read_manifest(folder)
    splits = (config.evaluation.train_split, config.evaluation.test_split)
    return {split: ShardReader(folder, manifest, split) for split in splits}


@dataclass(frozen=True)
class Piece:
    """Consecutive row groups of a split, of whose rows the first `rows` are used."""

    split: str
    groups: tuple[int, ...]
    first_row: int
    """Ordinal of the first row in the split: its key."""
    rows: int
    points: tuple[Point, ...] = ()
    """Where the denoiser is read; none: the encoder's latents."""
    number: int | None = None
    """Of the pass that crops and flips each image anew; none: central views."""

    @property
    def file(self) -> str:
        """The piece's name on storage."""
        place = f"{self.first_row:010d}-{self.rows}.parquet"
        return place if self.number is None else f"pass-{self.number:04d}-{place}"


def plan_pieces(
    split: str,
    groups: Sequence[int],
    limit: int | None,
    batch: int,
    points: tuple[Point, ...] = (),
) -> list[Piece]:
    """The first `limit` rows (none: all) as pieces of whole row groups, each of at least `batch` rows but the last.

    The plan does not know of actors, so their number decides no latent.
    """
    total = sum(groups) if limit is None else min(limit, sum(groups))
    pieces: list[Piece] = []
    start = first = 0
    row = 0
    for number, rows in enumerate(groups):
        row += rows
        if row - first >= batch or row >= total:
            pieces.append(Piece(split, tuple(range(start, number + 1)), first, min(row, total) - first, points))
            start, first = number + 1, row
        if row >= total:
            break
    return pieces


@torch.no_grad()
def extract(models: Models, piece: Piece) -> pa.Table:
    """The work of an actor: read, decode, encode.

    Returns:
        A row for each of the piece's: `key`, `name`, `ok` (bool, whether the image could be read), the data set's
        labels as int64, and vectors: `trained` and `untrained` (float32) and `pixels` (uint8), or one for each of
        several points; they mean nothing where not ok.

    Raises:
        UserError: a shard is damaged.
    """
    reader = models.reader[piece.split]
    labels = list(reader.manifest.labels)
    table = rows_of(reader, piece, ["key", "image", "name", *labels, *pose_columns(models.config)])
    if table.column("key").to_pylist() != list(range(piece.first_row, piece.first_row + piece.rows)):
        raise RuntimeError(f"rows {piece.first_row} and on of {piece.split} have other keys than their ordinals")
    see = centred if piece.number is None else partial(augmented, number=piece.number)
    seen = see(table, models.config, target=bool(piece.points))
    parts: list[dict[str, Tensor]] = []
    for at in range(0, piece.rows, models.config.evaluation.batch):
        rows = slice(at, at + models.config.evaluation.batch)
        parts.append(_arrays(models, seen.rows(rows), piece.first_row + at, piece))
    columns = {name: table.column(name).combine_chunks() for name in ("key", "name")}
    columns["ok"] = pa.array(seen.ok)
    columns |= {f"label/{name}": table.column(name).cast(pa.int64()).combine_chunks() for name in labels}
    vectors = {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
    return pa.table(columns | {f"vector/{name}": _vectors(array) for name, array in vectors.items()})


def _vectors(array: NDArray[Any]) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[1])


def _arrays(models: Models, seen: Centred, first_key: int, piece: Piece) -> dict[str, Tensor]:
    """A batch's rows by encoder; at several points, those of the trained model alone, by the point's text."""
    points, draw = piece.points, 0 if piece.number is None else piece.number + 1
    if len(points) > 1:
        read = activations(models, models.model, seen, first_key, points, draw)
        return {str(point): read[point] for point in points}
    arrays = {}
    for name in ("trained", "untrained") if models.config.evaluation.baselines else ("trained",):
        model = models.model if name == "trained" else models.untrained
        if points:
            arrays[name] = activations(models, model, seen, first_key, points, draw)[points[0]]
        else:
            arrays[name] = _latents(models, model, seen)
    if models.config.evaluation.baselines:
        arrays["pixels"] = raw_pixels(torch.from_numpy(seen.source))
    return arrays


def _latents(models: Models, model: Method | EncoderAlone, seen: Centred) -> Tensor:
    """The encoder's, float32 [n, D] on the CPU; the mean over the grid where there is no bottleneck."""
    assert isinstance(model, Encoding | EncoderAlone)
    z = model.encode(seen.sources(models.device))
    return (z.mean(1) if z.ndim == 3 else z).float().cpu()


def activations(
    models: Models,
    model: Method | EncoderAlone,
    seen: Centred,
    first_key: int,
    points: tuple[Point, ...],
    draw: int = 0,
) -> dict[Point, Tensor]:
    """The denoiser's at `points`, float32 [n, C] each on the CPU; a row's noise is a function of its key and `draw`."""
    assert isinstance(model, DiffusionMethod)
    sources = seen.sources(models.device)
    target = target_input(torch.from_numpy(seen.target)).to(models.device)
    pose = None if sources.poses is None else sources.poses[:, 0]
    condition = model.condition(sources, pose, None, None)
    found: dict[Point, Tensor] = {}
    for t in sorted({point.t for point in points}):
        keys = np.arange(first_key, first_key + len(seen.ok))
        eps = addressed_noise(models.config.seed, keys, t, draw, target.shape[-1]).to(models.device)
        read = model.activations(target, condition, t, eps)
        found |= {point: read[point.layer].cpu() for point in points if point.t == t}
    return found


def rows_of(reader: ShardReader, piece: Piece, columns: list[str]) -> pa.Table:
    return pa.concat_tables([reader.group(number, columns) for number in piece.groups]).slice(0, piece.rows)


@dataclass(frozen=True)
class Features:
    """The readable rows of a split in the order of keys."""

    split: str
    table: pa.Table
    """The data set's labels, int64 with nulls where there is none."""
    arrays: dict[str, NDArray[Any]]
    """By encoder, [n, D]: float32, pixels uint8."""
    unreadable: list[str]
    """Names of the rows that are left out."""

    def __len__(self) -> int:
        return len(self.table)

    def labels(self, columns: Sequence[str]) -> NDArray[np.int64]:
        """int64 [n, columns].

        Raises:
            UserError: a row without a value.
        """
        found = []
        for name in columns:
            column = self.table.column(name)
            if column.null_count:
                got = f"{column.null_count} rows of split {self.split} without a value"
                raise UserError(name, got, "a value in every row", "evaluate another label or split")
            found.append(column.to_numpy())
        return np.stack(found, axis=1)


def place_of(
    root: Folder,
    config: RunConfig,
    weights: str,
    shards: Sequence[str],
    points: Sequence[Point],
    *,
    passes: bool = False,
) -> Folder:
    """Where the latents of a split lie: the name says what decides them.

    Args:
        root: the run's folder.
        weights: digest of the checkpoint.
        shards: digests of the split's shards.
        points: where the denoiser is read.
        passes: of views that are cropped and flipped; all passes lie together, however many there are.
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
    return root.child(f"latents/{address(facts)}")


def collect(crew: Crew[Piece, None], place: Folder, pieces: list[Piece], say: Say) -> Features:
    """The features of all pieces, each row once.

    Raises:
        UserError: the model gives values that are not finite.
    """
    return read_features(write_latents(crew, place, pieces, say), pieces)


def write_latents(crew: Crew[Piece, None], place: Folder, pieces: list[Piece], say: Say) -> Folder:
    """The folder of a split in which all these pieces lie afterwards."""
    split = pieces[0].split
    folder = place.child(split)
    passes = len({piece.number for piece in pieces} - {None})
    what = f"latents of {split}" + (f", {passes} augmented passes" if passes else "")
    store(crew, folder, extract, pieces, say, what)
    return folder


def read_features(folder: Folder, pieces: Sequence[Piece]) -> Features:
    """What `collect` has left on storage.

    Raises:
        UserError: values that are not finite.
    """
    total = sum(piece.rows for piece in pieces)
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
    if rows.column("key").to_pylist() != list(range(total)):
        raise RuntimeError(f"{folder.uri} lacks rows, or has some twice")
    arrays = {name: array[:at] for name, array in arrays.items()}
    for name, array in arrays.items():
        if name not in ("untrained", "pixels"):
            check_finite(not_finite(array), pieces[0].split)
    return features_of(pieces[0].split, rows, rows.column("ok"), arrays)


def features_of(
    split: str, rows: pa.Table, ok: pa.Array | pa.ChunkedArray, arrays: dict[str, NDArray[Any]]
) -> Features:
    """The features of the rows that are `ok`, of whose vectors `arrays` holds no others."""
    labels = [name for name in rows.column_names if name.startswith("label/")]
    kept = rows.filter(ok).select(labels).rename_columns([name.removeprefix("label/") for name in labels])
    return Features(split, kept, arrays, rows.filter(pc.invert(ok)).column("name").to_pylist())


def not_finite(latents: NDArray[Any]) -> int:
    """How many rows hold a value that is not finite."""
    return sum(int((~np.isfinite(part)).any(axis=1).sum()) for part in _blocks(latents))


def check_finite(bad: int, split: str) -> None:
    """A `UserError` if latents of a trained encoder are not finite."""
    if bad:
        got = f"an encoder with {bad} latents of {split} that are not finite"
        raise UserError("--run", got, "a run that did not diverge", "evaluate an earlier step or lower optim.lr")


def _blocks(array: NDArray[Any], rows: int = 65536) -> Iterator[NDArray[Any]]:
    for start in range(0, len(array), rows):
        yield array[start : start + rows]


def check_splits(manifest: Manifest, config: RunConfig) -> None:
    """A `UserError` for a split that the data set does not have, or has without rows."""
    for which in ("train_split", "test_split"):
        name = getattr(config.evaluation, which)
        filled = [split for split, found in manifest.splits.items() if found.rows]
        if name not in filled:
            raise UserError(f"evaluation.{which}", name, ", ".join(filled), "choose a split with rows")
