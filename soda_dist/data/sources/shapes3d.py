"""3D Shapes: a solid in a coloured room; all combinations of six factors, 480,000 images of 64x64 pixels.

The published 3dshapes.h5 (https://github.com/deepmind/3d-shapes) has `images`, uint8 [480000, 64, 64, 3], and `labels`,
float64 [480000, 6], the factors' values. A factor's index is the rank of its value; the values are its class names.
Splits are drawn 80/10/10.

HDF5 compresses chunks of 15,000 images, so that each shard of shuffled rows reads the whole file, one chunk (184 MB) at
a time: shards are large.

Example:
    python jobs/prepare_data.py shapes3d --source 3dshapes.h5 --data data/shapes3d
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from soda_dist.data import source as contract
from soda_dist.data.formats.fixed_records import block_records, encode_png, is_size
from soda_dist.data.formats.hashed_splits import SHARES, split_numbers
from soda_dist.data.formats.seekable_file import SeekableFile
from soda_dist.data.shards import Label
from soda_dist.data.source import Contents, Part, Row, Source, damaged_file
from soda_dist.data.storage.folder import Folder, locate, open_folder
from soda_dist.errors import UserError

if TYPE_CHECKING:
    import h5py

FILE = "3dshapes.h5"
SIZES = {"floor_hue": 10, "wall_hue": 10, "object_hue": 10, "scale": 8, "shape": 4, "orientation": 15}
"""Number of values of each factor, in the column order of `labels`."""
DECIMALS = 6
"""Values are equal up to these decimals, since their last bits depend on how they were computed."""
ROWS_READ, BYTES_READ = 1024, 256 * 2**20
"""Rows read at a time without HDF5 chunks, and most bytes with them."""
MAX_CHUNK_BYTES = 2**30
"""Limit of an HDF5 chunk, which is held in memory."""
MAX_LABEL_VALUES = 2**24
MAX_VALUE = 1e6
HDF5_ERRORS = (OSError, EOFError, KeyError, RuntimeError, ValueError, TypeError)


class Options(contract.Options):
    groups_per_shard: Annotated[int, Field(ge=1, le=4096)] = 128
    """Large shards, since the file is read once for each."""


@dataclass(frozen=True)
class Shapes3d:
    """The file, and each factor's ascending values."""

    folder: Folder
    name: str
    values: dict[str, tuple[float, ...]]
    seed: int

    @property
    def contents(self) -> Contents:
        names = {name: tuple(f"{value:.4g}" for value in values) for name, values in self.values.items()}
        labels = {name: Label(kind="factor", names=names[name]) for name in self.values}
        return replace(Contents.with_labels(labels, "shape", rows_per_group=256, shuffled=True), drawn=True)

    def parts(self) -> Sequence[Part]:
        return [Part(split, self.name) for split in SHARES]

    def index(self, part: Part) -> pa.Table:
        with _opened(self.folder, self.name) as file:
            labels = _labels(self.folder, self.name, file)
        rows = split_numbers(len(labels), self.seed)[part.split]
        names = pa.array([f"{self.name}#{row}" for row in rows], pa.string())
        factors = zip(self.values.items(), labels[rows].T, strict=True)
        ranks = {name: np.searchsorted(values, column).astype(np.int32) for (name, values), column in factors}
        return pa.table({"name": names, "row": rows, **ranks})

    def rows(self, index: pa.Table) -> Iterator[Row]:
        numbers = index["row"].to_numpy()
        with _opened(self.folder, self.name) as file:
            images = _dataset(self.folder, self.name, file, "images")
            step = _rows_read(images)

            def read(block: int, places: list[int]) -> Iterator[bytes]:
                first = block * step
                pixels = images[first : first + step]
                return (encode_png(pixels[numbers[at] - first]) for at in places)

            pngs = block_records((numbers // step).tolist(), read)
            for entry, image in zip(index.to_pylist(), pngs, strict=True):
                yield Row(entry["name"], image, {name: entry[name] for name in self.values})


def open_source(uri: str, options: Options) -> Source:
    """Open 3D Shapes at `uri`, the file or its folder.

    Raises:
        UserError: no such file, or one with other contents.
    """
    folder, name = locate(uri) if uri.endswith((".h5", ".hdf5")) else (open_folder(uri), FILE)
    if not folder.exists(name):
        raise UserError(uri, f"no {name}", FILE, "correct the path")
    with _opened(folder, name) as file:
        labels = _labels(folder, name, file)
        images = _dataset(folder, name, file, "images")
        sound = images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] == 3 and is_size(images.shape[1:3])
        if not sound or len(images) != len(labels):
            allowed = f"uint8 [{len(labels)}, height, width, 3]"
            raise damaged_file(folder, name, f"images {images.dtype} {[*images.shape]}", allowed)
    values = {factor: np.unique(column) for factor, column in zip(SIZES, labels.T, strict=True)}
    for factor, size in SIZES.items():
        if len(values[factor]) != size:
            raise damaged_file(folder, name, f"{len(values[factor])} values of {factor}", f"{size}")
    if len(labels) != math.prod(SIZES.values()):
        raise damaged_file(folder, name, f"{len(labels):,} images", f"{math.prod(SIZES.values()):,}, all combinations")
    return Shapes3d(folder, name, {factor: tuple(found.tolist()) for factor, found in values.items()}, options.seed)


@contextmanager
def _opened(folder: Folder, name: str) -> Iterator["h5py.File"]:
    import h5py

    try:
        with folder.explained(name), SeekableFile(folder, name) as file, h5py.File(file, "r") as opened:
            yield opened
    except HDF5_ERRORS as error:
        raise damaged_file(folder, name, f"not valid HDF5 ({str(error)[:80]})", "the published file") from None


def _dataset(folder: Folder, name: str, file: "h5py.File", key: str) -> "h5py.Dataset":
    """Open a data set stored in this file; links out of it are refused."""
    import h5py

    link = file.get(key, getlink=True)
    found = file[key] if isinstance(link, h5py.HardLink) else None
    if not isinstance(found, h5py.Dataset) or found.external or found.is_virtual:
        raise damaged_file(folder, name, f"no {key} stored in it", "images and labels")
    chunk = math.prod(found.chunks or ()) * found.dtype.itemsize
    if chunk > MAX_CHUNK_BYTES:
        raise damaged_file(folder, name, f"{key} in chunks of {chunk:,} bytes", f"at most {MAX_CHUNK_BYTES:,}")
    return found


def _labels(folder: Folder, name: str, file: "h5py.File") -> NDArray[np.float64]:
    labels = _dataset(folder, name, file, "labels")
    if labels.ndim != 2 or labels.shape[1] != len(SIZES) or labels.dtype.kind not in "fiu":
        got = f"labels {labels.dtype} {[*labels.shape]}"
        raise damaged_file(folder, name, got, f"numbers [images, {len(SIZES)}]")
    if labels.size > MAX_LABEL_VALUES:
        raise damaged_file(folder, name, f"{labels.size:,} labels", f"at most {MAX_LABEL_VALUES:,}")
    values = labels[:].astype(np.float64)
    if not np.isfinite(values).all() or np.abs(values).max(initial=0) > MAX_VALUE:
        raise damaged_file(folder, name, "labels out of range", "the factors' values")
    return np.round(values, DECIMALS)


def _rows_read(images: "h5py.Dataset") -> int:
    """Rows per read: a whole chunk, within limits."""
    most = max(1, BYTES_READ // math.prod(images.shape[1:]))
    return min(images.chunks[0] if images.chunks else ROWS_READ, most)
