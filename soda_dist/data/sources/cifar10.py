"""CIFAR-10: the published binary batches (as a folder or a .tar.gz), or Parquet with an image and a label column.

Binary batches hold raw pixels; they are encoded as PNG, which loses nothing. Parquet images keep their bytes.
"""

import gzip
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from soda_dist.data.shards import Label
from soda_dist.data.sources.contract import Contents, Options, Part, Row, Source
from soda_dist.data.storage import Folder, locate, open_folder
from soda_dist.errors import UserError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCHES = {**{f"data_batch_{i}.bin": "train" for i in range(1, 6)}, "test_batch.bin": "test"}
SIDE = 32
RECORD = 1 + 3 * SIDE * SIDE
INNER, ARCHIVE = "cifar-10-batches-bin", "cifar-10-binary.tar.gz"
SPLITS = ("train", "test")
IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img"), ("label", "labels")
LAYOUTS = f"{INNER}/*.bin, {ARCHIVE}, or {{train,test}}/*.parquet"
CONTENTS = Contents(
    columns=(pa.field("label", pa.int32()),),
    labels={"label": Label(kind="class", names=CLASSES)},
    main_label="label",
    rows_per_group=256,
)


def open_source(uri: str, options: Options) -> Source:
    """CIFAR-10 at `uri`, whichever of its layouts lies there; a `UserError` if none does."""
    if uri.endswith((".tar.gz", ".tgz")):
        return _open_archive(*locate(uri))
    folder = open_folder(uri)
    for place in (folder, folder.child(INNER)):
        sizes = {entry.name: entry.size for entry in place.list() if entry.name in BATCHES}
        if sizes:
            return BinaryBatches(place, "", _complete(place.uri, sizes))
    if folder.exists(ARCHIVE):
        return _open_archive(folder, ARCHIVE)
    files = [entry.name for split in SPLITS for entry in folder.list(f"{split}/") if entry.name.endswith(".parquet")]
    if not files:
        raise UserError(uri, "none of CIFAR-10's layouts", LAYOUTS, "correct the path")
    return ParquetFiles(folder, tuple(files))


def _open_archive(folder: Folder, name: str) -> Source:
    uri = folder.file_uri(name)
    if not folder.exists(name):
        raise UserError(uri, "a missing file", LAYOUTS, "correct the path")
    with _archive(folder, name) as tar:
        sizes = {base: info.size for info in tar if (base := info.name.rpartition("/")[2]) in BATCHES}
    return BinaryBatches(folder, name, _complete(uri, sizes))


def _complete(uri: str, sizes: dict[str, int]) -> tuple[tuple[str, int], ...]:
    missing = sorted(set(BATCHES) - set(sizes))
    if missing:
        raise UserError(uri, f"no {missing[0]}", ", ".join(BATCHES), "download it again")
    return tuple((name, sizes[name]) for name in BATCHES)


@contextmanager
def _archive(folder: Folder, name: str) -> Iterator[tarfile.TarFile]:
    try:
        with folder.explained(name), folder.open(name) as file, tarfile.open(fileobj=file, mode="r:gz") as tar:
            yield tar
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(folder.file_uri(name), f"not a whole tar.gz ({error})", ARCHIVE, "download it again") from None


@dataclass(frozen=True)
class BinaryBatches:
    """Files of records: a label byte, then the red, green and blue planes. `archive` is empty for plain files."""

    folder: Folder
    archive: str
    sizes: tuple[tuple[str, int], ...]

    @property
    def contents(self) -> Contents:
        return CONTENTS

    def parts(self) -> Sequence[Part]:
        return [Part(BATCHES[name], name) for name, _ in self.sizes]

    def index(self, part: Part) -> pa.Table:
        # A last record that is cut short is listed too, so that it is counted as rejected.
        rows = np.arange(-(-dict(self.sizes)[part.name] // RECORD))
        return pa.table({"name": [f"{part.name}#{row}" for row in rows], "file": [part.name] * len(rows), "row": rows})

    def rows(self, index: pa.Table) -> Iterator[Row]:
        for entry in index.to_pylist():
            batch = _batch(self, entry["file"])
            yield _record(entry["name"], batch[entry["row"] * RECORD : (entry["row"] + 1) * RECORD])


@lru_cache(maxsize=2)
def _batch(source: BinaryBatches, name: str) -> bytes:
    if not source.archive:
        return source.folder.read(name)
    with _archive(source.folder, source.archive) as tar:
        member = next(info for info in tar if info.name.rpartition("/")[2] == name)
        file = tar.extractfile(member)
        return file.read() if file else b""


def _record(name: str, record: bytes) -> Row:
    if len(record) < RECORD:
        return Row(name, b"", {}, "a truncated record")
    if record[0] >= len(CLASSES):
        return Row(name, b"", {}, f"label {record[0]}, not 0..9")
    planes = np.frombuffer(record, np.uint8, offset=1).reshape(3, SIDE, SIDE)
    bgr = np.ascontiguousarray(planes[::-1].transpose(1, 2, 0))
    return Row(name, cv2.imencode(".png", bgr)[1].tobytes(), {"label": record[0]})


@dataclass(frozen=True)
class ParquetFiles:
    """Files with a column of encoded images (bytes, or a struct of bytes and path) and one of labels."""

    folder: Folder
    files: tuple[str, ...]

    @property
    def contents(self) -> Contents:
        return CONTENTS

    def parts(self) -> Sequence[Part]:
        return [Part(name.partition("/")[0], name) for name in self.files]

    def index(self, part: Part) -> pa.Table:
        with self._opened(part.name) as file:
            self._columns(part.name, file)
            counts = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        total = sum(counts)
        return pa.table(
            {
                "name": [f"{part.name}#{row}" for row in range(total)],
                "file": [part.name] * total,
                "group": np.repeat(np.arange(len(counts)), counts),
                "row": np.concatenate([np.arange(count) for count in [0, *counts]]).astype(np.int64),
            }
        )

    def rows(self, index: pa.Table) -> Iterator[Row]:
        held: tuple[str, int] | None = None
        for entry in index.to_pylist():
            if held != (entry["file"], entry["group"]):
                held = entry["file"], entry["group"]
                images, labels = self._group(*held)
            yield _parquet_row(entry["name"], images[entry["row"]].as_py(), labels[entry["row"]].as_py())

    def _group(self, name: str, group: int) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
        with self._opened(name) as file:
            image, label = self._columns(name, file)
            table = file.read_row_group(group, columns=[image, label], use_threads=False)
            return table[image], table[label]

    def _columns(self, name: str, file: pq.ParquetFile) -> tuple[str, str]:
        have = file.schema_arrow.names
        image = next((column for column in IMAGE_COLUMNS if column in have), None)
        label = next((column for column in LABEL_COLUMNS if column in have), None)
        if image is None or label is None:
            allowed = f"one of {'/'.join(IMAGE_COLUMNS)} and one of {'/'.join(LABEL_COLUMNS)}"
            raise UserError(self.folder.file_uri(name), f"columns {', '.join(have)}", allowed, "rename the columns")
        return image, label

    @contextmanager
    def _opened(self, name: str) -> Iterator[pq.ParquetFile]:
        try:
            with self.folder.explained(name), self.folder.open(name) as file:
                yield pq.ParquetFile(file, page_checksum_verification=True, pre_buffer=True)
        except (pa.ArrowException, OSError) as error:
            got = f"not whole Parquet ({str(error).splitlines()[0][:80]})"
            raise UserError(self.folder.file_uri(name), got, "Parquet", "download it again") from None


def _parquet_row(name: str, image: Any, label: Any) -> Row:
    if isinstance(image, dict):
        name, image = image.get("path") or name, image.get("bytes")
    if not isinstance(image, bytes) or not image:
        return Row(name, b"", {}, "no image bytes")
    if not isinstance(label, int) or not 0 <= label < len(CLASSES):
        return Row(name, b"", {}, f"label {label}, not 0..9")
    return Row(name, image, {"label": label})
