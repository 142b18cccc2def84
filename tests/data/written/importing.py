"""An import without its shards: the rows of a source, and what their images show."""

import io
import pickle

import numpy as np
import pyarrow as pa
from PIL import Image

from soda_dist.data.source import Row, Source
from soda_dist.data.sources import SOURCES, parse_options


def opened(kind: str, uri: str, *options: str) -> Source:
    """The source that `prepare_data.py KIND --source URI OPTIONS` would import, as its tasks get it."""
    return pickle.loads(pickle.dumps(SOURCES[kind].open_source(uri, parse_options(kind, options))))


def index_of(source: Source, split: str) -> pa.Table:
    """The list of a split's rows."""
    return pa.concat_tables([source.index(part) for part in source.parts() if part.split == split])


def rows_of(source: Source, split: str, order: list[int] | None = None) -> list[Row]:
    """A split's rows, or those at some places of its list, as a shard asks for them."""
    index = index_of(source, split)
    return list(source.rows(index if order is None else index.take(order)))


def decoded(data: bytes) -> np.ndarray:
    """Pixels, by Pillow: [h, w] of grey, [h, w, 3] of colour."""
    return np.asarray(Image.open(io.BytesIO(data)))


def seen_at(row: Row, point: np.ndarray | tuple[float, ...]) -> np.ndarray:
    """(u, v) of a point of the world in a row's image, by its columns."""
    to_world = np.array(row.columns["camera_to_world"], np.float64).reshape(4, 4)
    camera = np.linalg.solve(to_world, [*point, 1])[:3]
    assert camera[2] > 0
    u, v, w = np.array(row.columns["intrinsics"]).reshape(3, 3) @ camera
    return np.array([u, v]) / w
