"""SmallNORB: photographs of toys in 9 elevations, 18 azimuths and 6 lightings, by two cameras side by side.

The published files smallnorb-...-{training,testing}-{dat,cat,info}.mat, plain or .gz (inflated from the start for each
shard), described at https://cs.nyu.edu/~ylclab/data/norb-v1.0-small/. Little endian: int32 magic (the type), int32
number of dimensions, max(3, that number) int32 dimensions, values.

The published splits share no toy. Rows are sorted by toy, lighting, elevation and azimuth, so that views of a toy are
neighbours; `object` is 10 category + instance. Camera matrices are missing, since azimuths of different toys start at
different angles and no calibration is published. The 24.3K images of table 10 are those of one camera.

Example:
    python jobs/prepare_data.py smallnorb --source smallnorb --data data/smallnorb cameras=both
"""

import gzip
import io
import math
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from soda_dist.data import source as contract
from soda_dist.data.formats.fixed_records import block_records, encode_png, is_size, plain_records, stream_records
from soda_dist.data.formats.listing import list_files
from soda_dist.data.formats.seekable_file import SeekableFile
from soda_dist.data.shards import Label
from soda_dist.data.source import Contents, Part, Row, Source, damaged_file
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.errors import UserError

NAMES = {
    "train": "smallnorb-5x46789x9x18x6x2x96x96-training",
    "test": "smallnorb-5x01235x9x18x6x2x96x96-testing",
}
KINDS, ZIPPED = ("dat", "cat", "info"), ".gz"
CAMERAS = ("left", "right")
INSTANCES, LIGHTINGS = 10, 6
FACTORS = {
    "category": ("animal", "human", "airplane", "truck", "car"),
    "elevation": tuple(f"{angle} degrees" for angle in range(30, 75, 5)),
    "azimuth": tuple(f"{angle} degrees" for angle in range(0, 360, 20)),
    "lighting": tuple(str(number) for number in range(LIGHTINGS)),
}
TYPES = {0x1E3D4C55: "|u1", 0x1E3D4C54: "<i4", 0x1E3D4C56: "<i2", 0x1E3D4C51: "<f4", 0x1E3D4C53: "<f8"}
LAYOUT = " and ".join(f"{name}-{{{','.join(KINDS)}}}.mat[{ZIPPED}]" for name in NAMES.values())


class Options(contract.Options):
    cameras: Literal["left", "both"] = "left"
    """`both` imports two images per record, and adds the factor `camera`."""
    same_lighting: bool = False
    """Whether lighting is part of an object's identity: views then differ by camera alone, and z can encode lighting.
    Otherwise the views of a pair may differ in lighting, which the source cannot predict."""


class Matrix(NamedTuple):
    """A file's header: numpy dtype, dimensions, and offset of the values."""

    kind: str
    shape: tuple[int, ...]
    start: int


class Files(NamedTuple):
    """The three files of a split: images, categories, and the other factors."""

    dat: str
    cat: str
    info: str


@dataclass(frozen=True)
class SmallNorb:
    """The published files by split."""

    folder: Folder
    files: dict[str, Files]
    options: Options

    @property
    def contents(self) -> Contents:
        factors = {**FACTORS, "camera": CAMERAS} if self.options.cameras == "both" else FACTORS
        labels = {name: Label(kind="factor", names=names) for name, names in factors.items()}
        return Contents.with_labels(labels, "category", pa.field("object", pa.int64()), rows_per_group=256)

    def parts(self) -> Sequence[Part]:
        return [Part(split, files.dat) for split, files in self.files.items()]

    def index(self, part: Part) -> pa.Table:
        files = self.files[part.split]
        count = self._images(files.dat).shape[0]
        category = self._numbers(files.cat, (count,))
        instance, elevation, azimuth, lighting = self._numbers(files.info, (count, 4)).T
        order = np.lexsort((azimuth, elevation, lighting, instance, category))
        cameras = np.arange(len(CAMERAS) if self.options.cameras == "both" else 1)
        record, camera = np.repeat(order, len(cameras)), np.tile(cameras, count)
        return pa.table(
            {
                "name": [f"{files.dat}#{r}/{CAMERAS[c]}" for r, c in zip(record, camera, strict=True)],
                "file": [files.dat] * len(record),
                "image": record * len(CAMERAS) + camera,
                "instance": instance[record],
                "category": category[record],
                "elevation": elevation[record],
                "azimuth": azimuth[record],
                "lighting": lighting[record],
                "camera": camera,
            }
        )

    def rows(self, index: pa.Table) -> Iterator[Row]:
        entries = index.to_pylist()

        def read(name: str, places: list[int]) -> Iterator[Row]:
            numbers = np.array([entries[at]["image"] for at in places], np.int64)
            for at, image in zip(places, self._read(name, numbers), strict=True):
                yield self._row(entries[at], image)

        return block_records(index["file"].to_pylist(), read)

    def _row(self, entry: Mapping[str, Any], image: bytes | None) -> Row:
        halved = {**entry, "azimuth": entry["azimuth"] / 2}  # numbered 0, 2, ..., 34
        columns: dict[str, int] = {}
        for factor, label in {**self.contents.labels, "instance": None}.items():
            count = len(label.names) if label else INSTANCES
            if halved[factor] not in range(count):
                return Row(entry["name"], b"", {}, f"an unknown {factor} {entry[factor]}")
            columns[factor] = int(halved[factor])
        if image is None:
            return Row(entry["name"], b"", {}, "a truncated record")
        toy = columns["category"] * INSTANCES + columns.pop("instance")
        columns["object"] = toy * LIGHTINGS + columns["lighting"] if self.options.same_lighting else toy
        return Row(entry["name"], image, columns)

    def _images(self, name: str) -> Matrix:
        with self._opened(name) as (stream, matrix):
            whole = matrix.start + math.prod(matrix.shape)
            sound = matrix.kind == "|u1" and len(matrix.shape) == 4 and is_size(matrix.shape[2:])
            if not sound or matrix.shape[1] != len(CAMERAS):
                raise damaged_file(self.folder, name, _shown(matrix), "bytes [records, 2 cameras, height, width]")
            size = whole if name.endswith(ZIPPED) else stream.seek(0, io.SEEK_END)
            if size < whole:
                raise damaged_file(self.folder, name, f"{size} bytes", f"{whole}, as in its header")
        return matrix

    def _numbers(self, name: str, shape: tuple[int, ...]) -> NDArray[np.int64]:
        with self._opened(name) as (stream, matrix):
            if (matrix.kind, matrix.shape) != ("<i4", shape):
                raise damaged_file(self.folder, name, _shown(matrix), f"int32 {[*shape]}")
            size = 4 * math.prod(shape)
            data = stream.read(size)
        if len(data) < size:
            raise damaged_file(self.folder, name, f"{len(data)} bytes of numbers", f"{size}, as in its header")
        return np.frombuffer(data, "<i4").reshape(shape).astype(np.int64)

    def _read(self, name: str, numbers: NDArray[np.int64]) -> Iterator[bytes | None]:
        """Read images as PNG; None past the end of the file."""
        with self._opened(name) as (stream, matrix):
            side = matrix.shape[2:]
            size = math.prod(side)

            def encode(data: bytes) -> bytes | None:
                return encode_png(np.frombuffer(data, np.uint8).reshape(side)) if len(data) == size else None

            if name.endswith(ZIPPED):
                yield from stream_records(stream, size=size, numbers=numbers, convert=encode)
                return
        yield from plain_records(self.folder, name, start=matrix.start, size=size, numbers=numbers, convert=encode)

    @contextmanager
    def _opened(self, name: str) -> Iterator[tuple[IO[bytes], Matrix]]:
        """Open a file's inflated stream, positioned at the first value, with its header."""
        try:
            with self.folder.explained(name), SeekableFile(self.folder, name) as file:
                stream: Any = gzip.GzipFile(fileobj=file) if name.endswith(ZIPPED) else file
                yield stream, self._matrix(name, stream)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise damaged_file(self.folder, name, f"not a valid gzip file ({error})", "the published file") from None

    def _matrix(self, name: str, stream: IO[bytes]) -> Matrix:
        start = stream.read(8)
        magic, dimensions = struct.unpack("<Ii", start) if len(start) == 8 else (0, 0)
        if magic not in TYPES or not 1 <= dimensions <= 8:
            raise damaged_file(self.folder, name, "no matrix header", "the published file")
        data = stream.read(4 * max(3, dimensions))
        if len(data) < 4 * max(3, dimensions):
            raise damaged_file(self.folder, name, "a truncated header", "the published file")
        shape = struct.unpack(f"<{dimensions}i", data[: 4 * dimensions])
        if min(shape) < 1:
            raise damaged_file(self.folder, name, f"dimensions {[*shape]}", "positive dimensions")
        return Matrix(TYPES[magic], shape, 8 + len(data))


def _shown(matrix: Matrix) -> str:
    return f"{np.dtype(matrix.kind)} {[*matrix.shape]}"


def open_source(uri: str, options: Options) -> Source:
    """Open SmallNORB in the folder `uri`; a `UserError` if a file is missing."""
    folder = open_folder(uri)
    listed = {entry.name for entry in list_files(folder)}
    files = {
        split: Files(*(_find(folder, listed, f"{name}-{kind}.mat") for kind in KINDS)) for split, name in NAMES.items()
    }
    return SmallNorb(folder, files, options)


def _find(folder: Folder, listed: set[str], name: str) -> str:
    for form in (name, name + ZIPPED):
        if form in listed:
            return form
    raise UserError(folder.uri, f"no {name}[{ZIPPED}]", LAYOUT, "correct the path, or download the missing file")
