"""CIFAR-10: binary batches, the published archive of them, and Parquet with both forms of an image column."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from soda_dist.data.storage.folder import Folder
from tests.data.written.pictures import tar_of

ROOT = "cifar-10-batches-bin"
BATCHES = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
ROWS = 4
"""Of each batch."""


def pixels(batch: int, row: int) -> np.ndarray:
    return np.random.default_rng([batch, row]).integers(0, 256, (32, 32, 3), np.uint8)


def label(batch: int, row: int) -> int:
    return (3 * batch + row) % 10


def batch_bytes(batch: int) -> bytes:
    """A label, then all red, all green, all blue values in row order, as the format says."""
    records = b""
    for row in range(ROWS):
        image = pixels(batch, row)
        planes = [bytes([int(image[y, x, c]) for y in range(32) for x in range(32)]) for c in range(3)]
        records += bytes([label(batch, row)]) + b"".join(planes)
    return records


def files() -> dict[str, bytes]:
    """The batches and what nobody reads, by their published names."""
    batches = {f"{ROOT}/{name}": batch_bytes(number) for number, name in enumerate(BATCHES)}
    return {**batches, f"{ROOT}/batches.meta.txt": b"airplane\n"}


def archive_of(names: list[str]) -> bytes:
    """The published archive with these batches."""
    every = files()
    return tar_of({f"{ROOT}/{name}": every[f"{ROOT}/{name}"] for name in names}, "w:gz")


def jpeg(row: int) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels(7, row)).save(sink, "JPEG")
    return sink.getvalue()


def table(rows: range, image: str = "image", struct: bool = False) -> bytes:
    """Parquet of these rows."""
    images = [jpeg(row) for row in rows]
    cells = [{"bytes": data, "path": f"{row}.jpg"} for row, data in zip(rows, images, strict=True)]
    labels = pa.array([row % 10 for row in rows], pa.int64())
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({image: cells if struct else images, "label": labels}), sink, row_group_size=3)
    return sink.getvalue().to_pybytes()


def write(folder: Folder) -> None:
    """The batches, unpacked."""
    for name, data in files().items():
        folder.write(name, data)
