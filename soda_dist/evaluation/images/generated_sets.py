"""Sets of drawn images, beside the images that they should be like; they stay on storage.

A set lies in the run's `samples/ADDRESS/` as Parquet: `key`, `ok` (whether all images were readable), `image` and
`target` as PNG, and `psnr` and `ssim` between the two. SetPiece come in a seeded order, so that a smaller set is the
beginning of a larger one.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from soda_dist.config.schema import RunConfig
from soda_dist.config.sections import Sampling
from soda_dist.data.shards import ShardReader
from soda_dist.data.storage.folder import Folder
from soda_dist.evaluation.context import Context
from soda_dist.evaluation.images.sampling import SampleInputs, SampleJob, draw
from soda_dist.evaluation.images.scores import pixel_scores, png
from soda_dist.evaluation.piece_cache import address, load, store
from soda_dist.evaluation.pieces import MODEL_SECTIONS, object_runs, rows_at, shuffled
from soda_dist.evaluation.views import central_views, pose_columns
from soda_dist.evaluation.worker import Models
from soda_dist.models.aggregation import MeanAggregation
from soda_dist.models.method import Method
from soda_dist.runs.folder import samples_folder

Kind = Literal["reconstruction", "samples", "novel_views"]
NOISE: dict[Kind, int] = {"reconstruction": 0, "novel_views": 0, "samples": 2}
"""Numbers of their noise."""
PIECE = 32
"""SetPiece that an actor draws at a time, and that a file holds."""


@dataclass(frozen=True)
class ImageSet:
    """What is drawn, and how."""

    kind: Kind
    split: str
    how: Sampling
    """With the guidance and the number of steps of this set."""
    aggregation: Literal["own", "mean"] = "own"
    """Of several sources: as the model was trained, or the mean of their latents (table 5)."""


@dataclass(frozen=True)
class SetPiece:
    """A piece of a set."""

    of: ImageSet
    first: int
    """Its first member's place in the set."""
    keys: tuple[int, ...]
    """Rows of the split that are drawn."""
    sources: tuple[tuple[int, ...], ...]
    """Rows that each is drawn from."""

    @property
    def rows(self) -> int:
        """How many there are."""
        return len(self.keys)

    @property
    def file(self) -> str:
        """The piece's name on storage."""
        return f"{self.first:010d}-{self.rows}.parquet"


def image_set(context: Context, of: ImageSet, count: int) -> list[SetPiece]:
    """The first `count` images of the split in seeded order (all, if it has fewer), each its own source."""
    order = shuffled(context.config, context.manifest.split(of.split).rows)[:count].tolist()
    return _pieces(of, order, [(key,) for key in order])


def view_set(context: Context, of: ImageSet, objects: int, asked: int, skip: int, limit: int | None) -> list[SetPiece]:
    """Views of the first `objects` objects of the split in seeded order.

    An object's first `of.how.sources` views are its sources; up to `asked` are drawn of those after the first `skip`,
    which is the same for sets with different numbers of sources. `limit`: of views in all.
    """
    reader = ShardReader(context.data, context.manifest, of.split)
    runs = object_runs(reader)
    keys, sources = [], []
    for number in shuffled(context.config, len(runs))[:objects].tolist():
        start, stop = runs[number]
        for key in range(start + skip, min(start + skip + asked, stop)):
            keys.append(key)
            sources.append(tuple(range(start, start + of.how.sources)))
    return _pieces(of, keys[:limit], sources[:limit])


def _pieces(of: ImageSet, keys: list[int], sources: list[tuple[int, ...]]) -> list[SetPiece]:
    starts = range(0, len(keys), PIECE)
    return [SetPiece(of, at, tuple(keys[at : at + PIECE]), tuple(sources[at : at + PIECE])) for at in starts]


def folder_of(context: Context, of: ImageSet) -> Folder:
    """Where a set lies: the name says what decides it."""
    facts = {
        "weights": context.weights,
        "shards": [shard.sha256 for shard in context.manifest.split(of.split).shards],
        "config": context.config.model_dump(mode="json", include=set(MODEL_SECTIONS)),
        "precision": context.config.train.precision,
        "kind": of.kind,
        "how": of.how.model_dump(mode="json"),
        "aggregation": of.aggregation,
    }
    return samples_folder(context.run, address(facts))


def generate_set(context: Context, pieces: Sequence[SetPiece], what: str) -> Folder:
    """Draws what is not there yet; where the set lies."""
    folder = folder_of(context, pieces[0].of)
    store(context.workers, folder, generate_piece, pieces, context.say, what)
    return folder


@torch.no_grad()
def generate_piece(models: Models, members: SetPiece) -> pa.Table:
    """The work of an actor, see above for the columns."""
    of, config = members.of, models.config.model_copy(update={"sampling": members.of.how})
    inputs, ok = _read(models.reader[of.split], members, config)
    if of.kind == "samples":
        places = np.arange(members.first, members.first + members.rows)
        inputs = replace(inputs, keys=places)
    model = models.method if of.aggregation == "own" else with_mean(models.method)
    own = replace(models, model=model, config=config)
    guidance = 0.0 if of.kind == "samples" and config.method != "unconditional" else of.how.guidance
    drawn = draw(own, SampleJob(inputs, guidance, NOISE[of.kind], 0)).images
    psnr, ssim = pixel_scores(drawn, inputs.target)
    columns: dict[str, Any] = {
        "key": pa.array(members.keys, pa.int64()),
        "ok": pa.array(ok),
        "image": pa.array([png(image) for image in drawn], pa.binary()),
        "target": pa.array([png(image) for image in inputs.target], pa.binary()),
        "psnr": pa.array(psnr),
        "ssim": pa.array(ssim),
    }
    return pa.table(columns)


def with_mean(model: Method) -> Method:
    """The same networks with the mean as the aggregation of several latents."""
    other = copy.copy(model)
    other._modules = {**model._modules, "aggregation": MeanAggregation()}
    return other


def _read(reader: ShardReader, members: SetPiece, config: RunConfig) -> tuple[SampleInputs, NDArray[np.bool_]]:
    columns = ["image", *pose_columns(config)]
    rows = sorted({*members.keys, *(key for some in members.sources for key in some)})
    seen = central_views(rows_at(reader, rows, columns), config)
    place = {key: at for at, key in enumerate(rows)}
    targets = np.array([place[key] for key in members.keys])
    sources = np.array([[place[key] for key in some] for some in members.sources])
    inputs = SampleInputs(
        keys=np.array(members.keys, np.int64),
        source=seen.source[sources],
        source_pose=None if seen.pose is None else seen.pose[sources],
        target=seen.target[targets],
        pose=None if seen.pose is None else seen.pose[targets],
    )
    return inputs, seen.ok[targets] & seen.ok[sources].all(1)


def load_set(folder: Folder, pieces: Sequence[SetPiece], columns: Sequence[str]) -> pa.Table:
    """Columns of a set's readable members, and `key` and `ok`."""
    table = pa.concat_tables([load(folder, piece, ["key", "ok", *columns]) for piece in pieces])
    if table.column("key").to_pylist() != [key for piece in pieces for key in piece.keys]:
        raise RuntimeError(f"{folder.uri} lacks members, or has some twice")
    return table.filter(table.column("ok"))
