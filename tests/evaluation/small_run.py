"""A small prepared data set and a run trained on noise, both made in this process."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from soda_dist.config import RunConfig, dump_config
from soda_dist.data.shards import Label, Manifest, Split, shard_schema, write_manifest, write_shard
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.training.context import LocalContext
from soda_dist.training.loop import fit
from tests.tiny import feed
from tests.training.test_engine import engine_of

CLASSES = ("red", "green", "blue")
EVALUATION = {
    "batch": 8,
    "images": 3,
    "reconstruction": {"images": 5, "steps": (2,)},
    "knn": {"k": 5},
    "probe": {"epochs": 60, "batch": 16, "learning_rates": (1e-2, 3e-2)},
    "dci": {"factors": ("colour", "bright"), "rounds": 5},
}
"""The section of a run whose evaluation takes seconds."""
COLUMNS = [pa.field("colour", pa.int32()), pa.field("bright", pa.bool_()), pa.field("late", pa.bool_())]


def image_of(split: str, key: int) -> np.ndarray:
    """uint8 [20, 24, 3]: noise on the colour of the row's class, brighter for odd keys."""
    rng = np.random.default_rng([len(split), key])
    image = rng.integers(0, 60, (20, 24, 3)) + 60 * (key % 2)
    image[..., key % len(CLASSES)] += 120
    return image.astype(np.uint8)


def _png(split: str, key: int) -> bytes:
    out = BytesIO()
    Image.fromarray(image_of(split, key)).save(out, format="PNG")
    return out.getvalue()


def prepare(
    uri: str, shards: dict[str, list[list[int]]], broken: dict[str, set[int]], *, by_colour: bool = False
) -> Manifest:
    """Shards with the given rows in each row group; `broken` keys hold bytes that are no image.

    `by_colour`: whether the labels are sorted by class, each a third of the split, whatever the images show.
    """
    folder, splits = open_folder(uri), {}
    for split, files in shards.items():
        made, key = [], 0
        total = sum(map(sum, files))
        for number, groups in enumerate(files):
            tables = []
            for rows in groups:
                keys = list(range(key, key + rows))
                key += rows
                images = [b"no image" if k in broken.get(split, ()) else _png(split, k) for k in keys]
                columns = {
                    "key": keys, "image": images, "name": [f"{split}/{k}.png" for k in keys],
                    "colour": [k * len(CLASSES) // total if by_colour else k % len(CLASSES) for k in keys],
                    "bright": [k % 2 == 1 for k in keys],
                    "late": [k > 20 for k in keys],
                }  # fmt: skip
                tables.append(pa.table(columns, schema=shard_schema(COLUMNS)))
            shard = write_shard(folder, f"{split}/{number:05d}.parquet", tables, shard_schema(COLUMNS))
            assert shard is not None
            made.append(shard)
        splits[split] = Split(rows=key, shards=tuple(made))
    attribute = Label(kind="attribute", names=("no", "yes"))
    labels = {"colour": Label(kind="class", names=CLASSES), "bright": attribute, "late": attribute}
    manifest = Manifest(
        version=2,
        kind="test",
        source="test",
        fingerprint="0",
        splits=splits,
        labels=labels,
        main_label="colour",
        rejected=0,
    )
    write_manifest(folder, manifest)
    return manifest


def train(uri: str, config: RunConfig) -> Folder:
    """A run's folder with its configuration and complete checkpoints, trained on noise."""
    run = open_folder(uri)
    run.write("config.yaml", dump_config(config).encode())
    fit(LocalContext(), engine_of(config), config, feed(config), run, rows=100)
    return run


def small_data(path: Path) -> Manifest:
    """45 training and 30 test rows in uneven row groups; a broken image in each split."""
    shards = {"train": [[10, 7], [10, 10, 8]], "test": [[10, 10], [10]]}
    return prepare(str(path), shards, {"train": {13}, "test": {0}})
