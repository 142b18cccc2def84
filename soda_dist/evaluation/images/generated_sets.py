"""Sets of drawn images beside their originals, cached on storage.

A set lies in the run's `samples/ADDRESS/` as Parquet: `key`, `ok` (whether all images were readable), `image` and
`target` as PNG, `psnr` and `ssim` between the two, and `angle` in degrees between the target's camera and the nearest
source's, null without cameras. Members come in a seeded order, so a smaller set is the beginning of a larger one.
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
from soda_dist.data.views.poses import POSE_SIZES, view_angles
from soda_dist.evaluation.context import Context
from soda_dist.evaluation.images.sampling import SampleInputs, SampleJob, draw
from soda_dist.evaluation.images.scores import pixel_scores, png
from soda_dist.evaluation.piece_cache import address, load, store
from soda_dist.evaluation.pieces import MODEL_SECTIONS, object_runs, rows_at
from soda_dist.evaluation.rows import drawn_order
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
        members = address({"keys": self.keys, "sources": self.sources})
        return f"{self.first:010d}-{self.rows}-{members}.parquet"


def plan_images(context: Context, image_set: ImageSet, count: int | None) -> list[SetPiece]:
    """Plan `count` drawn images of the split (None = all), each its own source."""
    rows = context.manifest.split(image_set.split).rows
    order = drawn_order(rows, context.config.seed, image_set.split)[:count].tolist()
    return _pieces(image_set, order, [(key,) for key in order])


@dataclass(frozen=True)
class ViewPlan:
    """Which views of an object are sources and which are targets.

    Attributes:
        objects: drawn objects of the split; None = all.
        views: targets drawn for each object; None = all that no set has as a source.
        most: the largest number of sources of all sets: the first `most` views of an object's drawn order are sources
            in one of them, so every set has the same targets.
        limit: of targets in all; None = no limit.
    """

    objects: int | None
    views: int | None
    most: int
    limit: int | None = None


def view_order(config: RunConfig, split: str, start: int, stop: int) -> list[int]:
    """Order the views start..stop-1 of an object, sources first (section 4.2.2; our reading: they are drawn)."""
    return (start + drawn_order(stop - start, config.seed, split, start)).tolist()


def plan_views(context: Context, image_set: ImageSet, plan: ViewPlan) -> list[SetPiece]:
    """Plan target views of objects; each object's `sampling.sources` sources are the first of its drawn order."""
    reader = ShardReader(context.data, context.manifest, image_set.split)
    runs = object_runs(reader)
    keys: list[int] = []
    sources: list[tuple[int, ...]] = []
    for number in drawn_order(len(runs), context.config.seed, image_set.split)[: plan.objects].tolist():
        order = view_order(context.config, image_set.split, *runs[number])
        targets = sorted(order[plan.most :][: plan.views])
        keys += targets
        sources += [tuple(order[: image_set.sampling.sources])] * len(targets)
    return _pieces(image_set, keys[: plan.limit], sources[: plan.limit])


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
        "angle": pa.array(_nearest_angles(inputs), pa.float64()),
    }
    return pa.table(columns)


def _nearest_angles(inputs: SampleInputs) -> NDArray[np.float64] | list[None]:
    """Return the angle in degrees between each target's camera and the nearest source's; None without cameras."""
    if inputs.source_pose is None or inputs.pose is None or inputs.pose.shape[-1] != POSE_SIZES["cameras"]:
        return [None] * len(inputs.keys)
    return view_angles(inputs.source_pose, inputs.pose[:, None]).min(1)


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
