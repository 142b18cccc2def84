"""CIFAR's binary format: label bytes, then red, green and blue planes of 32x32 pixels.

Read from the published .tar.gz or the folder in it; pixels become PNG, which is lossless. Format:
https://www.cs.toronto.edu/~kriz/cifar.html.
"""

import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from soda_dist.data.formats.archive import open_tar_gz
from soda_dist.data.formats.fixed_records import block_records, encode_png, plain_records, stream_records
from soda_dist.data.formats.listing import list_files
from soda_dist.data.shards import Label
from soda_dist.data.source import Contents, Part, Row
from soda_dist.data.storage.folder import Folder, locate
from soda_dist.errors import UserError

SIDE = 32
PIXELS = 3 * SIDE * SIDE


class Layout(NamedTuple):
    """Layout of one of the two data sets.

    Attributes:
        inner, archive: the published folder, and the .tar.gz that contains it.
        batches: (file, split).
        labels: (column, class names), in the order of the label bytes.
        main_label: the column to predict.
    """

    inner: str
    archive: str
    batches: tuple[tuple[str, str], ...]
    labels: tuple[tuple[str, tuple[str, ...]], ...]
    main_label: str

    @property
    def record(self) -> int:
        """Bytes per record."""
        return len(self.labels) + PIXELS

    @property
    def contents(self) -> Contents:
        """Schema of the data set."""
        labels = {name: Label(kind="class", names=names) for name, names in self.labels}
        return Contents.with_labels(labels, self.main_label, rows_per_group=256)


def open_batches(folder: Folder, layout: Layout) -> "BinaryBatches | None":
    """Find the batches in a folder, its inner folder or the archive in it; None if it has none."""
    for place in (folder, folder.child(layout.inner)):
        sizes = {entry.name: entry.size for entry in list_files(place) if entry.name in dict(layout.batches)}
        if sizes:
            return BinaryBatches(layout, place, "", _complete(place.uri, layout, sizes))
    return _open_archive(folder, layout.archive, layout) if folder.exists(layout.archive) else None


def open_archive(uri: str, layout: Layout, allowed: str) -> "BinaryBatches":
    """Open the batches in a .tar.gz; `allowed` lists the accepted layouts for the error message."""
    folder, name = locate(uri)
    if not folder.exists(name):
        raise UserError(uri, "a missing file", allowed, "correct the path")
    return _open_archive(folder, name, layout)


def _open_archive(folder: Folder, name: str, layout: Layout) -> "BinaryBatches":
    with _archive(folder, name) as tar:
        sizes = {base: info.size for info in tar if (base := _base(info)) in dict(layout.batches)}
    return BinaryBatches(layout, folder, name, _complete(folder.file_uri(name), layout, sizes))


def _base(info: tarfile.TarInfo) -> str:
    """A regular file's name without folders; empty for other members."""
    return info.name.rpartition("/")[2] if info.isreg() else ""


def _complete(uri: str, layout: Layout, sizes: dict[str, int]) -> tuple[tuple[str, int], ...]:
    names = [name for name, _ in layout.batches]
    missing = next((name for name in names if name not in sizes), None)
    if missing:
        raise UserError(uri, f"no {missing}", ", ".join(names), "download it again")
    return tuple((name, sizes[name]) for name in names)


@contextmanager
def _archive(folder: Folder, name: str) -> Iterator[tarfile.TarFile]:
    with open_tar_gz(folder, name) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
        yield tar


@dataclass(frozen=True)
class BinaryBatches:
    """Batch files and their `sizes` in bytes; `archive` is empty for plain files."""

    layout: Layout
    folder: Folder
    archive: str
    sizes: tuple[tuple[str, int], ...]

    @property
    def contents(self) -> Contents:
        return self.layout.contents

    def parts(self) -> Sequence[Part]:
        return [Part(split, name) for name, split in self.layout.batches]

    def index(self, part: Part) -> pa.Table:
        # A truncated last record is listed too, so that it counts as rejected.
        rows = np.arange(-(-dict(self.sizes)[part.name] // self.layout.record))
        names = pa.array([f"{part.name}#{row}" for row in rows], pa.string())  # typed: a batch may be empty
        return pa.table({"name": names, "file": pa.array([part.name] * len(rows), pa.string()), "row": rows})

    def rows(self, index: pa.Table) -> Iterator[Row]:
        names = index["name"].to_pylist()

        def read(file: str, places: list[int]) -> Iterator[Row]:
            numbers = index["row"].to_numpy()[places]
            records = self._records(file, numbers)
            return (_row(names[at], record, self.layout) for at, record in zip(places, records, strict=True))

        return block_records(index["file"].to_pylist(), read)

    def _records(self, name: str, numbers: np.ndarray) -> Iterator[bytes]:
        size = self.layout.record
        if not self.archive:
            yield from plain_records(self.folder, name, start=0, size=size, numbers=numbers, convert=bytes)
            return
        with _archive(self.folder, self.archive) as tar:
            stream = tar.extractfile(next(info for info in tar if _base(info) == name))
            assert stream is not None, "a regular file"
            yield from stream_records(stream, size=size, numbers=numbers, convert=bytes)


def _row(name: str, record: bytes, layout: Layout) -> Row:
    if len(record) < layout.record:
        return Row(name, b"", {}, "a truncated record")
    columns = {}
    for value, (label, names) in zip(record, layout.labels, strict=False):
        if value >= len(names):
            return Row(name, b"", {}, f"{label} {value}, not 0..{len(names) - 1}")
        columns[label] = value
    planes = np.frombuffer(record, np.uint8, offset=len(layout.labels)).reshape(3, SIDE, SIDE)
    return Row(name, encode_png(planes.transpose(1, 2, 0)), columns)
