"""Parquet files with a column of encoded images (bytes, or a struct of bytes and path) and columns of class numbers.

Images keep their bytes. Row groups are the unit of reading: in file order each is read once, in random order once for
every shard.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from soda_dist.data.formats.fixed_records import block_records
from soda_dist.data.formats.hashed_splits import split_of
from soda_dist.data.shards import Label
from soda_dist.data.source import Contents, Part, Row, damaged_file
from soda_dist.data.storage.folder import Folder
from soda_dist.errors import UserError

BATCH, BUFFER_BYTES = 64, 4 * 2**20
"""Rows decoded and bytes fetched at a time; some published files have a single row group of gigabytes."""
IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img"), ("label", "labels")


class LabelColumn(NamedTuple):
    """A column of class numbers: its name in the shards, accepted names in the files, and class names."""

    name: str
    candidates: tuple[str, ...]
    names: tuple[str, ...]


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
    """

    folder: Folder
    files: tuple[Part, ...]
    images: tuple[str, ...]
    labels: tuple[LabelColumn, ...]
    main_label: str | None
    rows_per_group: int = 64
    seed: int | None = None
    shuffled: bool = False

    @property
    def contents(self) -> Contents:
        labels = {label.name: Label(kind="class", names=label.names) for label in self.labels}
        return Contents.with_labels(labels, self.main_label, rows_per_group=self.rows_per_group, shuffled=self.shuffled)

    def parts(self) -> Sequence[Part]:
        return self.files

    def index(self, part: Part) -> pa.Table:
        with open_table(self.folder, part.name) as file:
            self._columns(part.name, file)
            counts = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        names = [f"{part.name}#{row}" for row in range(sum(counts))]
        table = pa.table(
            {
                "name": pa.array(names, pa.string()),
                "file": pa.array([part.name] * len(names), pa.string()),
                "group": np.repeat(np.arange(len(counts)), counts),
                "row": np.concatenate([np.arange(count) for count in [0, *counts]]).astype(np.int64),
            }
        )
        if self.seed is None:
            return table
        return table.filter(pa.array([split_of(name, self.seed) == part.split for name in names], pa.bool_()))

    def rows(self, index: pa.Table) -> Iterator[Row]:
        names, numbers = index["name"].to_pylist(), index["row"].to_pylist()

        def read(group: tuple[str, int], places: list[int]) -> list[Row]:
            cells = self._cells(*group, {numbers[at] for at in places})
            return [self._row(names[at], *cells[numbers[at]]) for at in places]

        return block_records(list(zip(index["file"].to_pylist(), index["group"].to_pylist(), strict=True)), read)

    def _cells(self, name: str, group: int, numbers: set[int]) -> dict[int, tuple[Any, ...]]:
        """Read image and labels of some rows of a group."""
        wanted, first = np.array(sorted(numbers), np.int64), 0
        cells: dict[int, tuple[Any, ...]] = {}
        with open_table(self.folder, name) as file:
            columns = self._columns(name, file)
            for batch in file.iter_batches(BATCH, row_groups=[group], columns=columns, use_threads=False):
                here = wanted[slice(*np.searchsorted(wanted, [first, first + len(batch)]))]
                part = batch.select(columns).take(pa.array(here - first))
                rows = zip(*(column.to_pylist() for column in part.columns), strict=True)
                cells.update(zip(here.tolist(), rows, strict=True))
                first += len(batch)
                if len(cells) == len(numbers):
                    break
        return cells

    def _columns(self, name: str, file: pq.ParquetFile) -> list[str]:
        """Find the image column of a file, then the label columns."""
        have = file.schema_arrow.names
        wanted = [self.images, *(label.candidates for label in self.labels)]
        found = [next((column for column in candidates if column in have), "") for candidates in wanted]
        if "" in found:
            allowed = " and ".join(f"one of {'/'.join(candidates)}" for candidates in wanted)
            raise UserError(self.folder.file_uri(name), f"columns {', '.join(have)}", allowed, "rename the columns")
        return found

    def _row(self, name: str, image: Any, *values: Any) -> Row:
        if isinstance(image, dict):
            name, image = image.get("path") or name, image.get("bytes")
        if not isinstance(image, bytes) or not image:
            return Row(name, b"", {}, "no image bytes")
        for label, value in zip(self.labels, values, strict=True):
            if not isinstance(value, int) or not 0 <= value < len(label.names):
                return Row(name, b"", {}, f"{label.name} {value}, not 0..{len(label.names) - 1}")
        return Row(name, image, {label.name: value for label, value in zip(self.labels, values, strict=True)})
