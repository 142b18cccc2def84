"""Parquet files with a column of encoded images (bytes, or a struct of bytes and path) and columns of labels.

Labels are read with the list of rows, before any image. Images keep their bytes, but for TIFF, which becomes PNG:
`datasets` writes it for images of a palette, CMYK or 16 bits. Row groups are the unit of reading: in file order each is
read once, in random order once for every shard.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from soda_dist.data.formats.fixed_records import block_records, encode_png
from soda_dist.data.formats.hashed_splits import split_of
from soda_dist.data.formats.table_labels import LabelColumn
from soda_dist.data.shards import Label
from soda_dist.data.source import Contents, Part, Row, damaged_file
from soda_dist.data.storage.folder import Folder
from soda_dist.data.views.decode import decode, read_header
from soda_dist.errors import UserError

BATCH, BUFFER_BYTES = 64, 4 * 2**20
"""Rows decoded and bytes fetched at a time; some published files have a single row group of gigabytes."""
IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img"), ("label", "labels")
FILE, GROUP, ROW, PROBLEM = (f"soda.{name}" for name in ("file", "group", "row", "problem"))
"""Columns of the index beside the labels: where a row is, and why its label is unknown, or null."""
TIFF = (b"II*\0", b"MM\0*")


@contextmanager
def open_table(folder: Folder, name: str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file; damage found while it is open becomes a `UserError`."""
    try:
        with folder.explained(name), folder.open(name) as file:
            opened = pq.ParquetFile(file, page_checksum_verification=True, buffer_size=BUFFER_BYTES, pre_buffer=False)
            _check_names(opened.schema_arrow.names, folder.file_uri(name))
            yield opened
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # UnicodeDecodeError: damaged names or text
        got = f"not valid Parquet ({str(error).splitlines()[0][:80]})"
        raise damaged_file(folder, name, got, "Parquet") from None


def _check_names(names: Sequence[str], uri: str) -> None:
    repeated = next((name for at, name in enumerate(names) if name in names[:at]), None)
    if repeated is not None:
        raise UserError(uri, f"two columns {repeated}", "unique column names", "rename one of them")


@dataclass(frozen=True)
class ImageTables:
    """Parquet files with published splits, or with rows split by name.

    Attributes:
        files: splits and files.
        images: accepted names of the image column.
        seed: of splits drawn by the rows' names; None = one split per file, as published.
        unlabelled: import rows without a label, instead of rejecting them.
        notes: as in `Contents`.
    """

    folder: Folder
    files: tuple[Part, ...]
    images: tuple[str, ...]
    labels: tuple[LabelColumn, ...]
    main_label: str | None
    rows_per_group: int = 64
    seed: int | None = None
    shuffled: bool = False
    unlabelled: bool = False
    notes: tuple[str, ...] = ()

    @property
    def contents(self) -> Contents:
        labels = {label.name: Label(kind="class", names=label.names) for label in self.labels}
        rows = self.rows_per_group
        contents = Contents.with_labels(labels, self.main_label, rows_per_group=rows, shuffled=self.shuffled)
        return replace(contents, drawn=self.seed is not None, notes=self.notes)

    def parts(self) -> Sequence[Part]:
        return self.files

    def index(self, part: Part) -> pa.Table:
        with open_table(self.folder, part.name) as file:
            self._image(part.name, file)
            encoded = [label.encode(_cells(file, label)) for label in self.labels]
            counts = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        names = [f"{part.name}#{row}" for row in range(sum(counts))]
        table = pa.table(
            {
                "name": pa.array(names, pa.string()),
                FILE: pa.array([part.name] * len(names), pa.string()),
                GROUP: np.repeat(np.arange(len(counts)), counts),
                ROW: np.concatenate([np.arange(count) for count in [0, *counts]]).astype(np.int64),
                PROBLEM: pa.array(_first_problems([problems for _, problems in encoded], len(names)), pa.string()),
                **{
                    label.name: pa.array(found, pa.int32())
                    for label, (found, _) in zip(self.labels, encoded, strict=True)
                },
            }
        )
        if self.seed is None:
            return table
        return table.filter(pa.array([split_of(name, self.seed) == part.split for name in names], pa.bool_()))

    def rows(self, index: pa.Table) -> Iterator[Row]:
        entries = index.to_pylist()

        def read(group: tuple[str, int], places: list[int]) -> list[Row]:
            cells = self._cells(*group, {entries[at][ROW] for at in places})
            return [self._row(entries[at], cells[entries[at][ROW]]) for at in places]

        return block_records([(entry[FILE], entry[GROUP]) for entry in entries], read)

    def _cells(self, name: str, group: int, numbers: set[int]) -> dict[int, Any]:
        """Read the images of some rows of a group."""
        wanted, first = np.array(sorted(numbers), np.int64), 0
        cells: dict[int, Any] = {}
        with open_table(self.folder, name) as file:
            image = self._image(name, file)
            for batch in file.iter_batches(BATCH, row_groups=[group], columns=[image], use_threads=False):
                here = wanted[slice(*np.searchsorted(wanted, [first, first + len(batch)]))]
                cells.update(zip(here.tolist(), batch[image].take(pa.array(here - first)).to_pylist(), strict=True))
                first += len(batch)
                if len(cells) == len(numbers):
                    break
        return cells

    def _image(self, name: str, file: pq.ParquetFile) -> str:
        """Find the image column of a file."""
        have = file.schema_arrow.names
        found = next((column for column in self.images if column in have), None)
        if found is None:
            allowed = f"one of {'/'.join(self.images)}"
            raise UserError(self.folder.file_uri(name), f"columns {', '.join(have)}", allowed, "rename the columns")
        return found

    def _row(self, entry: Mapping[str, Any], image: Any) -> Row:
        name = entry["name"]
        if isinstance(image, dict):
            name, image = image.get("path") or name, image.get("bytes")
        labels = {label.name: entry[label.name] for label in self.labels}
        lacking = next((label for label, value in labels.items() if value is None), None)
        if not isinstance(image, bytes) or not image:
            return Row(name, b"", labels, "no image bytes")
        if entry[PROBLEM] or (lacking and not self.unlabelled):
            return Row(name, b"", labels, entry[PROBLEM] or f"no {lacking}")
        return Row(name, _from_tiff(image) if image.startswith(TIFF) else image, labels)


def _cells(file: pq.ParquetFile, label: LabelColumn) -> pa.ChunkedArray:
    """Read a label column; nulls if the file lacks it."""
    found = next((column for column in label.candidates if column in file.schema_arrow.names), None)
    if found is None:
        return pa.chunked_array([pa.nulls(file.metadata.num_rows)])
    return file.read([found], use_threads=False)[found]


def _first_problems(columns: Sequence[Sequence[str | None]], count: int) -> list[str | None]:
    """Keep the first problem of each row."""
    return [next((problem for problem in row if problem), None) for row in zip(*columns, strict=True)] or [None] * count


def _from_tiff(data: bytes) -> bytes:
    """Convert a TIFF to PNG; bytes that cannot be decoded come back, for the import to reject."""
    header = read_header(data)
    pixels = decode(data, header, 1) if header else None
    return data if pixels is None else encode_png(pixels)
