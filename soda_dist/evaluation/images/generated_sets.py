"""Sets of drawn images beside their originals, cached on storage.

A set lies in the run's `samples/ADDRESS/` as Parquet: `key`, `ok` (whether all images were readable), `image` and
`target` as PNG, and `psnr` and `ssim` between the two. Members come in a seeded order, so a smaller set is the
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
"""Members that a worker draws at a time, and that a file holds."""


@dataclass(frozen=True)
class ImageSet:
    """A set of images to draw.

    Attributes:
        sampling: with the guidance, the steps and the number of sources of this set.
        aggregation: of several sources: as the model was trained, or the mean of their latents (table 5).
    """

    kind: Kind
    split: str
    sampling: Sampling
    aggregation: Literal["own", "mean"] = "own"


@dataclass(frozen=True)
class SetPiece:
    """Some members of a set.

    Attributes:
        image_set: which set.
        first: place of the first member in the set.
        keys: rows of the split that are drawn.
        sources: rows that each is drawn from.
    """

    image_set: ImageSet
    first: int
    keys: tuple[int, ...]
    sources: tuple[tuple[int, ...], ...]

    @property
    def rows(self) -> int:
        """Their number."""
        return len(self.keys)

    @property
    def file(self) -> str:
        """The piece's name on storage."""
        return f"{self.first:010d}-{self.rows}.parquet"


def plan_images(context: Context, image_set: ImageSet, count: int) -> list[SetPiece]:
    """Plan the first `count` images of the split in seeded order (all if it has fewer), each its own source."""
    order = shuffled(context.config, context.manifest.split(image_set.split).rows)[:count].tolist()
    return _pieces(image_set, order, [(key,) for key in order])


def plan_views(
    context: Context, image_set: ImageSet, objects: int, views: int, skip: int, limit: int | None
) -> list[SetPiece]:
    """Plan views of the first `objects` objects of the split in seeded order.

    An object's first `sampling.sources` views are its sources; its targets are up to `views` views after the first
    `skip`, which is the same for sets with different numbers of sources. `limit`: of views in all.
    """
    reader = ShardReader(context.data, context.manifest, image_set.split)
    runs = object_runs(reader)
    keys, sources = [], []
    for number in shuffled(context.config, len(runs))[:objects].tolist():
        start, stop = runs[number]
        for key in range(start + skip, min(start + skip + views, stop)):
            keys.append(key)
            sources.append(tuple(range(start, start + image_set.sampling.sources)))
    return _pieces(image_set, keys[:limit], sources[:limit])


def _pieces(image_set: ImageSet, keys: list[int], sources: list[tuple[int, ...]]) -> list[SetPiece]:
    starts = range(0, len(keys), PIECE)
    return [SetPiece(image_set, at, tuple(keys[at : at + PIECE]), tuple(sources[at : at + PIECE])) for at in starts]


def folder_of(context: Context, image_set: ImageSet) -> Folder:
    """Name the folder of a set by everything that decides its images."""
    facts = {
        "weights": context.weights,
        "shards": [shard.sha256 for shard in context.manifest.split(image_set.split).shards],
        "config": context.config.model_dump(mode="json", include=set(MODEL_SECTIONS)),
        "precision": context.config.train.precision,
        "kind": image_set.kind,
        "how": image_set.sampling.model_dump(mode="json"),
        "aggregation": image_set.aggregation,
    }
    return samples_folder(context.run, address(facts))


def generate_set(context: Context, pieces: Sequence[SetPiece], what: str) -> Folder:
    """Draw the pieces that are not cached; return the folder of the set."""
    folder = folder_of(context, pieces[0].image_set)
    store(context.workers, folder, generate_piece, pieces, context.say, what)
    return folder


@torch.no_grad()
def generate_piece(models: Models, piece: SetPiece) -> pa.Table:
    """Draw a piece; a worker's job. See above for the columns."""
    image_set = piece.image_set
    config = models.config.model_copy(update={"sampling": image_set.sampling})
    inputs, ok = _read(models.reader[image_set.split], piece, config)
    if image_set.kind == "samples":
        inputs = replace(inputs, keys=np.arange(piece.first, piece.first + piece.rows))
    model = models.method if image_set.aggregation == "own" else with_mean(models.method)
    free = image_set.kind == "samples" and config.method != "unconditional"
    job = SampleJob(inputs, 0.0 if free else image_set.sampling.guidance, NOISE[image_set.kind], 0)
    drawn = draw(replace(models, model=model, config=config), job).images
    psnr, ssim = pixel_scores(drawn, inputs.target)
    columns: dict[str, Any] = {
        "key": pa.array(piece.keys, pa.int64()),
        "ok": pa.array(ok),
        "image": pa.array([png(image) for image in drawn], pa.binary()),
        "target": pa.array([png(image) for image in inputs.target], pa.binary()),
        "psnr": pa.array(psnr),
        "ssim": pa.array(ssim),
    }
    return pa.table(columns)


def with_mean(model: Method) -> Method:
    """Return the same networks with the mean as the aggregation of several latents."""
    shared = (*model.children(), *model.parameters(recurse=False), *model.buffers(recurse=False))
    other = copy.deepcopy(model, {id(part): part for part in shared})
    other.aggregation = MeanAggregation()
    return other


def _read(reader: ShardReader, piece: SetPiece, config: RunConfig) -> tuple[SampleInputs, NDArray[np.bool_]]:
    columns = ["image", *pose_columns(config)]
    rows = sorted({*piece.keys, *(key for some in piece.sources for key in some)})
    seen = central_views(rows_at(reader, rows, columns), config)
    place = {key: at for at, key in enumerate(rows)}
    targets = np.array([place[key] for key in piece.keys])
    sources = np.array([[place[key] for key in some] for some in piece.sources])
    inputs = SampleInputs(
        keys=np.array(piece.keys, np.int64),
        source=seen.source[sources],
        source_pose=None if seen.pose is None else seen.pose[sources],
        target=seen.target[targets],
        pose=None if seen.pose is None else seen.pose[targets],
    )
    return inputs, seen.ok[targets] & seen.ok[sources].all(1)


def load_set(folder: Folder, pieces: Sequence[SetPiece], columns: Sequence[str]) -> pa.Table:
    """Load columns of a set's readable members, and `key` and `ok`."""
    table = pa.concat_tables([load(folder, piece, ["key", "ok", *columns]) for piece in pieces])
    if table.column("key").to_pylist() != [key for piece in pieces for key in piece.keys]:
        raise RuntimeError(f"{folder.uri} lacks members or has some twice")
    return table.filter(table.column("ok"))
