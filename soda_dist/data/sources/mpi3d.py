"""MPI3D: a robotic arm holding a coloured shape; all combinations of seven factors, in four variants.

The published archives mpi3d_toy.npz, mpi3d_realistic.npz, mpi3d_real.npz and real3d_complicated_shapes_ordered.npz
(`complex`) have one array, `images`, [N, 64, 64, 3] in row-major order of the factors, and no labels; described at
https://github.com/rr-learning/disentanglement_dataset. Splits are drawn 80/10/10.

The published arrays are uncompressed (up to 12.7 GB) and read in place by byte range. A deflated archive is inflated
from its start for each shard, in bounded memory; `numpy.savez` restores the published form.

Example:
    python jobs/prepare_data.py mpi3d --source mpi3d_real.npz --data data/mpi3d_real
"""

import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from tokenize import TokenError
from typing import IO, Annotated, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from soda_dist.data import source as contract
from soda_dist.data.formats.archive import ZIP_ERRORS, locate_packed
from soda_dist.data.formats.fixed_records import encode_png, is_size, plain_records, stream_records
from soda_dist.data.formats.hashed_splits import SHARES, split_numbers
from soda_dist.data.formats.listing import list_files
from soda_dist.data.formats.seekable_file import SeekableFile
from soda_dist.data.shards import Label
from soda_dist.data.source import Contents, Part, Row, Source, damaged_file
from soda_dist.data.storage.folder import Folder, locate, open_folder
from soda_dist.errors import UserError

Factors = dict[str, tuple[str, ...]]
_PLACES: Factors = {
    "object_size": ("small", "large"),
    "camera_height": ("top", "center", "bottom"),
    "background_color": ("purple", "sea green", "salmon"),
    "horizontal_axis": tuple(str(step) for step in range(40)),
    "vertical_axis": tuple(str(step) for step in range(40)),
}
_SIMPLE: Factors = {
    "object_color": ("white", "green", "red", "blue", "brown", "olive"),
    "object_shape": ("cone", "cube", "cylinder", "hexagonal", "pyramid", "sphere"),
    **_PLACES,
}
_COMPLEX: Factors = {
    "object_color": ("yellow", "green", "olive", "red"),
    "object_shape": ("coffee-cup", "tennis-ball", "croissant", "beer-cup"),
    **_PLACES,
}
FACTORS = {"toy": _SIMPLE, "realistic": _SIMPLE, "real": _SIMPLE, "complex": _COMPLEX}
FILES = {
    "toy": "mpi3d_toy.npz",
    "realistic": "mpi3d_realistic.npz",
    "real": "mpi3d_real.npz",
    "complex": "real3d_complicated_shapes_ordered.npz",
}
MEMBER = "images.npy"


class Options(contract.Options):
    variant: Literal["toy", "realistic", "real", "complex"] | None = None
    """Which of the four; None = by file name, or the only one in the folder."""
    groups_per_shard: Annotated[int, Field(ge=1, le=4096)] = 128
    """Large shards, since a deflated archive is inflated once for each."""


class Images(NamedTuple):
    """The array's shape, and its offset in the archive, or in the inflated member."""

    shape: tuple[int, ...]
    start: int
    deflated: bool

    @property
    def image_bytes(self) -> int:
        return math.prod(self.shape[1:])


@dataclass(frozen=True)
class Mpi3d:
    """The archive of one variant."""

    folder: Folder
    name: str
    factors: Factors
    images: Images
    seed: int

    @property
    def contents(self) -> Contents:
        labels = {name: Label(kind="factor", names=names) for name, names in self.factors.items()}
        return replace(Contents.with_labels(labels, "object_shape", rows_per_group=256, shuffled=True), drawn=True)

    def parts(self) -> Sequence[Part]:
        return [Part(split, self.name) for split in SHARES]

    def index(self, part: Part) -> pa.Table:
        rows = split_numbers(self.images.shape[0], self.seed)[part.split]
        return pa.table({"name": pa.array([f"{self.name}#{row}" for row in rows], pa.string()), "row": rows})

    def rows(self, index: pa.Table) -> Iterator[Row]:
        numbers = index["row"].to_numpy()
        values = np.unravel_index(numbers, [len(names) for names in self.factors.values()])
        labels = np.stack(values, axis=1).tolist()
        for name, image, label in zip(index["name"].to_pylist(), self._pngs(numbers), labels, strict=True):
            columns = dict(zip(self.factors, label, strict=True))
            yield Row(name, image, columns) if image else Row(name, b"", columns, "a truncated record")

    def _pngs(self, numbers: NDArray[np.int64]) -> Iterator[bytes]:
        _, start, deflated = self.images
        size = self.images.image_bytes

        def encode(data: bytes) -> bytes:
            if len(data) < size:
                return b""
            return encode_png(np.frombuffer(data, np.uint8).reshape(self.images.shape[1:]))

        if not deflated:
            yield from plain_records(self.folder, self.name, start=start, size=size, numbers=numbers, convert=encode)
            return
        with _opened(self.folder, self.name, sequential=True) as archive, archive.open(MEMBER) as stream:
            stream.read(start)
            yield from stream_records(stream, size=size, numbers=numbers, convert=encode)


def open_source(uri: str, options: Options) -> Source:
    """Open the archive at `uri`, or in the folder `uri`.

    Raises:
        UserError: no archive, an unknown variant, or other images than the variant's.
    """
    folder, name, variant = _find(uri, options.variant)
    factors = FACTORS[variant]
    images = _images(folder, name)
    sizes = [len(names) for names in factors.values()]
    if images.shape[0] != math.prod(sizes):
        got = f"{images.shape[0]:,} images"
        allowed = f"{'*'.join(str(size) for size in sizes)} = {math.prod(sizes):,} of {variant}"
        raise UserError(folder.file_uri(name), got, allowed, "set variant=" + "|".join(FACTORS))
    return Mpi3d(folder, name, factors, images, options.seed)


def _find(uri: str, variant: str | None) -> tuple[Folder, str, str]:
    if uri.endswith(".npz"):
        folder, name = locate(uri)
        found_variant = variant or next((kind for kind, file in FILES.items() if file == name), None)
        if not folder.exists(name):
            raise UserError(uri, "a missing file", ", ".join(FILES.values()), "correct the path")
        if not found_variant:
            raise UserError("variant", "nothing", ", ".join(FACTORS), f"set the variant of {name}")
        return folder, name, found_variant
    folder = open_folder(uri)
    listed = {entry.name for entry in list_files(folder)}
    found = [kind for kind, file in FILES.items() if file in listed and kind == (variant or kind)]
    if len(found) > 1:
        got = f"nothing, and {', '.join(found)} in {uri}"
        raise UserError("variant", got, "one of them", f"set variant={found[0]}")
    if not found:
        wanted = FILES[variant] if variant else ", ".join(FILES.values())
        raise UserError(uri, "none of MPI3D's archives", wanted, "correct the path")
    return folder, FILES[found[0]], found[0]


@contextmanager
def _opened(folder: Folder, name: str, *, sequential: bool = False) -> Iterator[zipfile.ZipFile]:
    try:
        with (
            folder.explained(name),
            SeekableFile(folder, name, sequential=sequential) as file,
            zipfile.ZipFile(file) as archive,
        ):
            yield archive
    except (*ZIP_ERRORS, zlib.error) as error:
        raise damaged_file(folder, name, f"not a valid .npz ({error})", "a published archive") from None


def _images(folder: Folder, name: str) -> Images:
    with _opened(folder, name) as archive:
        if MEMBER not in archive.namelist():
            raise damaged_file(folder, name, f"an archive of {', '.join(archive.namelist()[:5]) or 'nothing'}", MEMBER)
        info = archive.getinfo(MEMBER)
        if info.flag_bits & 1:
            raise damaged_file(folder, name, f"an encrypted {MEMBER}", "an unencrypted archive")
        if info.header_offset < 0:
            raise damaged_file(folder, name, f"no valid offset of {MEMBER}", "a published archive")
        with archive.open(info) as stream:
            shape, header = _header(folder, name, stream)
        if info.file_size != header + math.prod(shape):
            raise damaged_file(folder, name, f"{info.file_size:,} bytes in {MEMBER}", f"{header + math.prod(shape):,}")
    place = locate_packed(folder, name, info)
    return Images(shape, header + (place.start if place.stored else 0), deflated=not place.stored)


def _header(folder: Folder, name: str, stream: IO[bytes]) -> tuple[tuple[int, ...], int]:
    """Read the array's shape, and the size of its header in bytes."""
    try:
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, kind = read(stream)
    except (ValueError, KeyError, SyntaxError, TokenError) as error:  # numpy parses the header as Python
        raise damaged_file(folder, name, f"no array in {MEMBER} ({error})", "an array") from None
    if kind != np.uint8 or fortran or len(shape) != 4 or shape[3] != 3 or shape[0] < 1 or not is_size(shape[1:3]):
        raise damaged_file(folder, name, f"{kind} {[*shape]}", "uint8 [images, height, width, 3]")
    return shape, stream.tell()
