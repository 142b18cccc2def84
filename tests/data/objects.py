"""A prepared data set of objects, made in this process: each row's identity can be read off any of its views."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from soda_dist.data.shards import Label, Manifest, ShardReader, Split, shard_schema, write_manifest, write_shard
from soda_dist.data.storage.folder import open_folder
from tests.data.views.test_decode import scene

CLASSES = ("one", "two", "three", "four")
VIEWS = (3, 1, 5, 4, 1, 1, 7, 20, 2, 1, 6, 1, 12, 3, 9, 2, 2, 1)
"""Rows of each object."""
SHARDS = ((8, 8, 5), (8, 3), (7, 9, 8, 8, 8, 9))
"""Rows of each row group: objects cross the borders of groups and shards, and one covers whole groups."""
ROWS = sum(VIEWS)
OBJECTS = np.repeat(1000 - 7 * np.arange(len(VIEWS)), VIEWS)
LABELS = np.where(np.arange(ROWS) == 3, 3, np.arange(ROWS) ** 2 % 7 % 3)
"""Row 3 is alone in its class, and as an object."""
COLUMNS = (
    pa.field("label", pa.int32()),
    pa.field("object", pa.int64()),
    pa.field("camera_to_world", pa.list_(pa.float32(), 16)),
    pa.field("intrinsics", pa.list_(pa.float32(), 9)),
)
assert sum(map(sum, SHARDS)) == ROWS


def flat(key: int) -> bytes:
    """An image of one colour that says which row it is: crops, flips and resizes leave it alone."""
    return cv2.imencode(".png", np.full((20 + key % 5, 24, 3), (0, 100, key), np.uint8))[1].tobytes()


def keys_of(views: np.ndarray) -> np.ndarray:
    """The rows that views [..., h, w, 3] of `flat` images show."""
    assert (views == views[..., :1, :1, :]).all()
    return views[..., 0, 0, 0].astype(int)


def pictured(key: int) -> bytes:
    """An image with something to see, of a size of its own; some as JPEG, large enough to be decoded smaller."""
    side = 30 + key % 7 if key % 3 else 140 + key
    return cv2.imencode(".png" if key % 3 else ".jpg", scene(side, side + 3 * (key % 4), key))[1].tobytes()


def camera(key: int) -> tuple[np.ndarray, np.ndarray]:
    """camera_to_world [4, 4] and intrinsics [3, 3] of a row."""
    rng = np.random.default_rng([7, key])
    to_world = np.eye(4)
    to_world[:3, :3] = cv2.Rodrigues(rng.normal(size=3))[0]
    to_world[:3, 3] = rng.normal(size=3)
    skew = rng.normal()
    intrinsics = np.array([[30 + key, skew, 15], [0, 33 + key, 11], [0, 0, 1]])
    return to_world.astype(np.float32), intrinsics.astype(np.float32)


def row(key: int, image: Callable[[int], bytes], broken: Sequence[int]) -> dict[str, Any]:
    to_world, intrinsics = camera(key)
    return {
        "key": key, "image": b"broken" if key in broken else image(key), "name": f"row {key}",
        "label": int(LABELS[key]), "object": int(OBJECTS[key]),
        "camera_to_world": to_world.reshape(-1), "intrinsics": intrinsics.reshape(-1),
    }  # fmt: skip


def write_objects(
    uri: str,
    image: Callable[[int], bytes],
    broken: Sequence[int] = (),
    leave_out: Sequence[str] = (),
    labels: dict[str, Label] | None = None,
) -> ShardReader:
    """The data set in the folder, and a reader of it."""
    schema = shard_schema([column for column in COLUMNS if column.name not in leave_out])
    folder, shards, starts = open_folder(uri), [], iter([0, *accumulate(n for groups in SHARDS for n in groups)])
    for number, groups in enumerate(SHARDS):
        tables = []
        for count, start in zip(groups, starts, strict=False):
            rows = [row(key, image, broken) for key in range(start, start + count)]
            tables.append(pa.table([pa.array([r[f.name] for r in rows], f.type) for f in schema], schema=schema))
        shard = write_shard(folder, f"train/{number:05d}.parquet", tables, schema)
        assert shard is not None
        shards.append(shard)
    labels = {"label": Label(kind="class", names=CLASSES)} if labels is None else labels
    manifest = Manifest(
        version=2, kind="test", source="", fingerprint=uri, splits={"train": Split(rows=ROWS, shards=tuple(shards))},
        labels=labels, main_label=next(iter(labels), None), rejected=0,
    )  # fmt: skip
    write_manifest(folder, manifest)
    return ShardReader(folder, manifest, "train")


@dataclass(eq=False)
class Counting:
    """A reader that notes what is asked of it."""

    reader: ShardReader
    groups_asked: list[tuple[int, tuple[str, ...]]] = field(default_factory=list)
    columns_asked: list[str] = field(default_factory=list)

    @property
    def manifest(self) -> Manifest:
        return self.reader.manifest

    @property
    def groups(self) -> tuple[int, ...]:
        return self.reader.groups

    def group(self, number: int, columns: Sequence[str]) -> pa.Table:
        self.groups_asked.append((number, tuple(columns)))
        return self.reader.group(number, columns)

    def column(self, name: str) -> pa.ChunkedArray:
        self.columns_asked.append(name)
        return self.reader.column(name)
