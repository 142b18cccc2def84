"""Tables of images as `datasets` writes them for the Hugging Face hub, schema and file names by hand."""

import io
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from soda_dist.data.storage.folder import Folder

CLASSES = ["cat", "dog", "owl"]
FEATURES = {
    "image": {"mode": None, "_type": "Image"},
    "label": {"names": CLASSES, "_type": "ClassLabel"},
    "size": {"dtype": "int32", "_type": "Value"},
}
SPLITS = {"train": range(7), "validation": range(7, 9), "test": range(9, 13)}


def image(row: int) -> bytes:
    pixels = np.random.default_rng(row).integers(0, 256, (8 + row, 9, 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG" if row % 2 else "JPEG")
    return sink.getvalue()


def label(row: int) -> int:
    return row % 3


def table(rows: range, *, features: dict[str, Any] | None = FEATURES, struct: bool = True) -> pa.Table:
    """Columns image, label and size, with the schema's key `huggingface` unless there are no features."""
    cells = [{"bytes": image(row), "path": f"{row}.jpg" if row % 2 == 0 else None} for row in rows]
    columns = {
        "image": cells if struct else [cell["bytes"] for cell in cells],
        "label": pa.array([label(row) for row in rows], pa.int64()),
        "size": pa.array([8 + row for row in rows], pa.int32()),
        "caption": [f"number {row}" for row in rows],
    }
    made = pa.table(columns)
    return made.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})} if features else None
    )


def put(folder: Folder, name: str, made: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(made, sink, row_group_size=2)
    folder.write(name, sink.getvalue())


def write(folder: Folder) -> None:
    """data/SPLIT-NNNNN-of-NNNNN.parquet, the training split in two files."""
    folder.write("README.md", b"---\ndataset_info: ...\n---\n")
    put(folder, "data/train-00000-of-00002.parquet", table(range(4)))
    put(folder, "data/train-00001-of-00002.parquet", table(range(4, 7)))
    put(folder, "data/validation-00000-of-00001-0123456789abcdef.parquet", table(SPLITS["validation"]))
    put(folder, "data/test-00000-of-00001.parquet", table(SPLITS["test"]))
