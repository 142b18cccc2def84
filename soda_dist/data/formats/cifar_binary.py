"""The binary version of both CIFARs: a few bytes of labels, then the red, green and blue planes of 32x32 pixels.

As published, a .tar.gz, or as the folder that it holds. Pixels are encoded as PNG, which loses nothing. Described at
https://www.cs.toronto.edu/~kriz/cifar.html.
"""

import gzip
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from soda_dist.data.formats.fixed_records import block_records, plain_records, png, stream_records
from soda_dist.data.formats.seekable_file import SeekableFile
from soda_dist.data.shards import Label
from soda_dist.data.source import Contents, Part, Row
from soda_dist.data.storage.folder import Folder, locate
from soda_dist.errors import UserError

SIDE = 32
PIXELS = 3 * SIDE * SIDE


class Layout(NamedTuple):
    """What differs between the two.

    Attributes:
        inner, archive: the published folder and the .tar.gz that holds it.
        batches: (file, split).
        labels: (column, names of its classes), in the order of a record's bytes.
        main_label: the column to predict.
    """

    inner: str
    archive: str
    batches: tuple[tuple[str, str], ...]
    labels: tuple[tuple[str, tuple[str, ...]], ...]
    main_label: str

    @property
    def record(self) -> int:
        """Bytes of one."""
        return len(self.labels) + PIXELS

    @property
    def contents(self) -> Contents:
        """Of a data set in this layout."""
        return Contents(
            columns=tuple(pa.field(name, pa.int32()) for name, _ in self.labels),
            labels={name: Label(kind="class", names=names) for name, names in self.labels},
            main_label=self.main_label,
            rows_per_group=256,
        )


def open_batches(folder: Folder, layout: Layout) -> "BinaryBatches | None":
    """The batches in a folder, in its inner folder or in the archive there; None if it holds none of them."""
    for place in (folder, folder.child(layout.inner)):
        sizes = {entry.name: entry.size for entry in place.list() if entry.name in dict(layout.batches)}
        if sizes:
            return BinaryBatches(layout, place, "", _complete(place.uri, layout, sizes))
    return _open_archive(folder, layout.archive, layout) if folder.exists(layout.archive) else None


def open_archive(uri: str, layout: Layout, allowed: str) -> "BinaryBatches":
    """The batches in a .tar.gz; `allowed` says what else could have been named."""
    folder, name = locate(uri)
    if not folder.exists(name):
        raise UserError(uri, "a missing file", allowed, "correct the path")
    return _open_archive(folder, name, layout)


def _open_archive(folder: Folder, name: str, layout: Layout) -> "BinaryBatches":
    with _archive(folder, name) as tar:
        sizes = {base: info.size for info in tar if (base := _base(info)) in dict(layout.batches)}
    return BinaryBatches(layout, folder, name, _complete(folder.file_uri(name), layout, sizes))


def _base(info: tarfile.TarInfo) -> str:
    """The name of a file without its folders; nothing for links and whatever else is no file."""
    return info.name.rpartition("/")[2] if info.isreg() else ""


def _complete(uri: str, layout: Layout, sizes: dict[str, int]) -> tuple[tuple[str, int], ...]:
    names = [name for name, _ in layout.batches]
    missing = next((name for name in names if name not in sizes), None)
    if missing:
        raise UserError(uri, f"no {missing}", ", ".join(names), "download it again")
    return tuple((name, sizes[name]) for name in names)


@contextmanager
def _archive(folder: Folder, name: str) -> Iterator[tarfile.TarFile]:
    try:
        with (
            folder.explained(name),
            SeekableFile(folder, name) as file,
            tarfile.open(fileobj=file, mode="r:gz") as tar,
        ):
            yield tar
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        got = f"not a whole tar.gz ({error})"
        raise UserError(folder.file_uri(name), got, "the published archive", "download it again") from None


@dataclass(frozen=True)
class BinaryBatches:
    """Files of records, with their bytes. `archive` is empty for plain files."""

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
        # A last record that is cut short is listed too, so that it is counted as rejected.
        rows = np.arange(-(-dict(self.sizes)[part.name] // self.layout.record))
        names = pa.array([f"{part.name}#{row}" for row in rows], pa.string())  # a batch may be empty
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
            yield from plain_records(self.folder, name, start=0, size=size, numbers=numbers, keep=bytes)
            return
        with _archive(self.folder, self.archive) as tar:
            stream = tar.extractfile(next(info for info in tar if _base(info) == name))
            assert stream is not None, "a regular file"
            yield from stream_records(stream, size=size, numbers=numbers, keep=bytes)


def _row(name: str, record: bytes, layout: Layout) -> Row:
    if len(record) < layout.record:
        return Row(name, b"", {}, "a truncated record")
    columns = {}
    for value, (label, names) in zip(record, layout.labels, strict=False):
        if value >= len(names):
            return Row(name, b"", {}, f"{label} {value}, not 0..{len(names) - 1}")
        columns[label] = value
    planes = np.frombuffer(record, np.uint8, offset=len(layout.labels)).reshape(3, SIDE, SIDE)
    return Row(name, png(planes.transpose(1, 2, 0)), columns)
