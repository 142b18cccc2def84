"""Rendered solids with known factors, object identities and exact cameras; no download.

An object is a unique combination of factors (shape, hues, size, orientation), so that splits share no combination. Each
object is seen by several cameras. Factors and cameras depend on (seed, object, view) alone.

Example:
    python jobs/prepare_data.py synthetic --data data/solids objects=4096 views=8 size=64
"""

import colorsys
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal, NamedTuple, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, model_validator

from soda_dist.config.problems import Problem, ProblemError
from soda_dist.data import source as contract
from soda_dist.data.formats.camera_folders import POSE_COLUMNS
from soda_dist.data.formats.fixed_records import encode_png
from soda_dist.data.shards import Label
from soda_dist.data.source import Contents, Part, Row, Source
from soda_dist.data.sources.synthetic_render import Scenes, render
from soda_dist.data.views import addressed
from soda_dist.errors import UserError

SIZES = np.linspace(0.64, 1.06, 8)
ORIENTATIONS = np.linspace(-42, 42, 15)
"""Degrees, within a right angle so that a cube's orientation is unique."""
HUES = ("red", "orange", "lime", "green", "mint", "cyan", "azure", "blue", "purple", "pink")
FACTORS = {
    "shape": ("cube", "cylinder", "sphere", "cone"),
    "object_hue": HUES,
    "floor_hue": HUES,
    "wall_hue": HUES,
    "size": tuple(f"{size:.2f}" for size in SIZES),
    "orientation": tuple(f"{angle:+.0f} degrees" for angle in ORIENTATIONS),
}
COMBINATIONS = math.prod(len(names) for names in FACTORS.values())  # 480,000
SATURATION_VALUE = {"wall_hue": (0.45, 0.95), "floor_hue": (0.55, 0.9), "object_hue": (0.85, 1.0)}
FOCAL = 1.15
"""Focal length in image widths."""
AZIMUTH, ELEVATION, DISTANCE = (-30.0, 30.0), (22.0, 42.0), (5.2, 6.2)
"""Ranges of the camera position around the point it looks at: degrees from the front (-y), degrees, world units."""
TARGET, TARGET_RANGE = np.array([0.0, 0.0, 0.8]), np.array([0.25, 0.25, 0.15])


class Setting(NamedTuple):
    """Where solids stand, and how they fill the picture."""

    focal: float
    """Focal length in image widths."""
    target_range: NDArray[np.float64]
    """World units, [3]: the point that a camera looks at lies within this of `TARGET`."""
    sizes: NDArray[np.float64]
    """World units: half the height and width of a solid, by rank."""
    surroundings: float
    """Factor of the saturation of walls and floor."""


SETTINGS = {
    "room": Setting(FOCAL, TARGET_RANGE, SIZES, 1.0),
    "studio": Setting(1.3, np.array([0.75, 0.75, 0.3]), np.linspace(0.8, 1.06, len(SIZES)), 0.25),
}
SUPERSAMPLE = 2
IMAGES_PER_RENDER = 256


class Options(contract.Options):
    objects: Annotated[int, Field(ge=1, le=COMBINATIONS)] = 4096
    """Objects of the training split."""
    test_objects: Annotated[int, Field(ge=0, le=COMBINATIONS)] | None = None
    """Objects of the test split; None = a quarter of `objects`."""
    views: Annotated[int, Field(ge=1, le=1000)] = 2
    """Images per object."""
    size: Annotated[int, Field(ge=8, le=512)] = 64
    """Pixels a side."""
    setting: Literal["room", "studio"] = "room"
    """Coloured walls and floor, the solid near the middle; or pale ones, and larger solids that are often off it."""
    groups_per_shard: Annotated[int, Field(ge=1, le=4096)] = 4
    """Small shards, since each is one task and rendering is slow."""

    @property
    def counts(self) -> dict[str, int]:
        """Objects per split."""
        tests = self.objects // 4 if self.test_objects is None else self.test_objects
        return {"train": self.objects, "test": tests}

    @model_validator(mode="after")
    def _enough(self) -> Self:
        total = sum(self.counts.values())
        if total > COMBINATIONS:
            got, allowed = f"{total} in all splits", f"up to {COMBINATIONS}"
            raise ProblemError(Problem("objects", got, allowed, "lower it, or raise views"))
        return self


@dataclass(frozen=True)
class Synthetic:
    """The first objects are for training, the following for testing."""

    options: Options

    @property
    def contents(self) -> Contents:
        names = FACTORS | {"size": tuple(f"{size:.2f}" for size in SETTINGS[self.options.setting].sizes)}
        return Contents.with_labels(
            {name: Label(kind="factor", names=values) for name, values in names.items()},
            "shape",
            *POSE_COLUMNS,
            rows_per_group=256 if self.options.size <= 64 else 64,
        )

    def parts(self) -> Sequence[Part]:
        return [Part(split, "objects") for split, count in self.options.counts.items() if count]

    def index(self, part: Part) -> pa.Table:
        first = 0 if part.split == "train" else self.options.objects
        count = self.options.counts[part.split]
        objects = np.repeat(np.arange(first, first + count), self.options.views)
        views = np.tile(np.arange(self.options.views), count)
        names = [f"object {o} view {v}" for o, v in zip(objects, views, strict=True)]
        return pa.table({"name": names, "object": objects, "view": views})

    def rows(self, index: pa.Table) -> Iterator[Row]:
        for batch in index.to_batches(max_chunksize=IMAGES_PER_RENDER):
            objects, views = (batch[name].to_numpy().astype(np.int64) for name in ("object", "view"))
            values = factors(self.options.seed, objects)
            seen = scenes(self.options, objects, views)
            images = render(seen, self.options.size, supersample=SUPERSAMPLE)
            for row, name in enumerate(batch["name"].to_pylist()):
                columns = {factor: int(value[row]) for factor, value in values.items()}
                columns["object"] = int(objects[row])
                columns["camera_to_world"] = seen.camera_to_world[row].reshape(-1)
                columns["intrinsics"] = seen.intrinsics[row].reshape(-1)
                yield Row(name, encode_png(images[row]), columns)


def open_source(uri: str, options: Options) -> Source:
    """Open the synthetic data set; a `UserError` if a source is given."""
    if uri:
        raise UserError("--source", uri, "nothing for synthetic", "leave it out")
    return Synthetic(options)


def factors(seed: int, objects: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """Draw the factor indices of objects, int64 [n] each, without repeating a combination."""
    values = np.unravel_index(_combinations(seed)[objects], [len(names) for names in FACTORS.values()])
    return dict(zip(FACTORS, values, strict=True))


@lru_cache(maxsize=2)
def _combinations(seed: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, COMBINATIONS]).permutation(COMBINATIONS)


def scenes(options: Options, objects: NDArray[np.int64], views: NDArray[np.int64]) -> Scenes:
    """Build the scene of each object and view, int64 [n] each."""
    values = factors(options.seed, objects)
    setting = SETTINGS[options.setting]
    paleness = {"wall_hue": setting.surroundings, "floor_hue": setting.surroundings, "object_hue": 1.0}
    palette = np.stack([_colours(name, values[name], factor) for name, factor in paleness.items()], axis=1)
    focal = setting.focal * options.size
    intrinsics = np.array([[focal, 0, options.size / 2], [0, focal, options.size / 2], [0, 0, 1]], np.float32)
    return Scenes(
        shape=values["shape"],
        scale=setting.sizes[values["size"]].astype(np.float32),
        yaw=np.radians(ORIENTATIONS[values["orientation"]]).astype(np.float32),
        palette=palette,
        camera_to_world=_cameras(options.seed, objects * options.views + views, setting.target_range),
        intrinsics=np.broadcast_to(intrinsics, (len(objects), 3, 3)),
    )


def _colours(name: str, hues: NDArray[np.int64], factor: float) -> NDArray[np.float32]:
    """RGB of hues, float32 [n, 3]; `factor` multiplies the saturation."""
    saturation, value = SATURATION_VALUE[name]
    table = [colorsys.hsv_to_rgb(hue / len(HUES), factor * saturation, value) for hue in range(len(HUES))]
    return np.array(table, np.float32)[hues]


def _cameras(seed: int, keys: NDArray[np.int64], target_range: NDArray[np.float64]) -> NDArray[np.float32]:
    """Camera to world, float32 [n, 4, 4]: x right, y down, z towards a point near the solid."""
    u = addressed.uniforms(seed, "synthetic cameras", 0, keys, range(6))
    azimuth, elevation, distance = (
        low + (high - low) * u[:, i] for i, (low, high) in enumerate((AZIMUTH, ELEVATION, DISTANCE))
    )
    azimuth, elevation = np.radians(azimuth), np.radians(elevation)
    away = np.stack(
        [np.sin(azimuth) * np.cos(elevation), -np.cos(azimuth) * np.cos(elevation), np.sin(elevation)], axis=1
    )
    position = TARGET + (2 * u[:, 3:] - 1) * target_range + distance[:, None] * away
    right = np.stack([np.cos(azimuth), np.sin(azimuth), np.zeros_like(azimuth)], axis=1)
    pose = np.zeros((len(keys), 4, 4))
    pose[:, :3, 0], pose[:, :3, 1], pose[:, :3, 2] = right, np.cross(-away, right), -away
    pose[:, :3, 3], pose[:, 3, 3] = position, 1
    return pose.astype(np.float32)
