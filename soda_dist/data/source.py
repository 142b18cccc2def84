"""The contract between published data sets and the import."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import pyarrow as pa
from PIL import Image, UnidentifiedImageError
from pydantic import Field

from soda_dist.config.fields import Node
from soda_dist.data.shards import Label
from soda_dist.data.storage.folder import Folder
from soda_dist.data.views.decode import decode, explain_unreadable, read_header
from soda_dist.errors import UserError

FORMATS = ("JPEG", "MPO", "PNG", "WEBP")
CONVERTED = ("BMP", "GIF", "TIFF")
"""Formats that an import reads only to re-encode them."""
UNSHOWN = {"F": "32 bits a channel", "I": "32 bits a channel", "LAB": "CIELAB colours"}
"""Pillow's modes of pixels that it would clip to white or not convert, in words."""
FRAMES, NO_FRAMES = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA), (0xC4, 0xC8, 0xCC)
"""JPEG's start-of-frame markers, baseline, extended and progressive, by Huffman or arithmetic code; and the markers
among them that start tables."""
READERS = 8
"""Concurrent reads per task: object-store requests are bound by latency."""


class Options(Node):
    """Options common to all kinds of sources."""

    rows_per_group: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Rows per row group, the unit of reading; None = the source's default."""
    groups_per_shard: Annotated[int, Field(ge=1, le=4096)] = 16
    """Row groups per shard, the unit of an import's tasks and of resuming."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of random splits, row orders, and synthetic objects and cameras."""
    max_side: Annotated[int, Field(ge=1)] | None = None
    """Pixels; downscales larger images and stores all as JPEG. None = as published."""
    quality: Annotated[int, Field(ge=1, le=100)] | None = None
    """JPEG quality; stores all images as JPEG. None = 90 with `max_side`, else as published."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Rows per split, drawn by name and seed, or the first ones where an object has several; None = all."""


class LabelOptions(Options):
    """Options of kinds that find the labels in the user's own files."""

    unlabelled: Literal["skip", "import"] = "skip"
    """Splits and rows without a label beside labelled ones: left out, or imported without it."""


class UnreadableError(Exception):
    """A row's image cannot be read; the message becomes the row's `problem`."""


class Part(NamedTuple):
    """Unit of listing: a class, an archive or a file."""

    split: str
    name: str


class Row(NamedTuple):
    """One image, or the `problem` for which the import rejects it."""

    name: str
    image: bytes
    columns: Mapping[str, Any]
    problem: str | None = None


@dataclass(frozen=True)
class Contents:
    """Schema of a data set, known before its rows are listed."""

    columns: tuple[pa.Field, ...]
    """Columns in addition to key, image and name."""
    labels: dict[str, Label] = field(default_factory=dict)
    main_label: str | None = None
    rows_per_group: int = 64
    shuffled: bool = False
    """Whether the import shuffles rows, because they are published sorted by class. Never with an `object` column:
    views of an object are looked up among neighbouring rows."""
    drawn: bool = False
    """Whether splits are drawn here: one that gets no row, or a class of which training gets none, is then a chance."""
    notes: tuple[str, ...] = ()
    """What else the source understood, a line each: what is left out and why, and how ambiguous names were read."""
    files: Folder | None = None
    """Folder in which the rows' names are paths, where symbolic links could list a file twice."""

    @property
    def by_object(self) -> bool:
        """Whether rows show objects, of which one may have several."""
        return any(column.name == "object" for column in self.columns)

    @classmethod
    def with_labels(
        cls,
        labels: dict[str, Label],
        main_label: str | None,
        *columns: pa.Field,
        rows_per_group: int = 64,
        shuffled: bool = False,
    ) -> "Contents":
        """Make contents with an int32 column per label, followed by `columns`."""
        label_columns = (pa.field(name, pa.int32()) for name in labels)
        return cls((*label_columns, *columns), labels, main_label, rows_per_group, shuffled)


class Source(Protocol):
    """A published data set. Picklable: its methods run in remote tasks.

    Opening it reads little: names, headers, first members. The import lists all parts next, says what it understood
    and refuses contradictions (`preparation.understanding`); only then it reads images.
    """

    @property
    def contents(self) -> Contents:
        """Schema."""

    def parts(self) -> Sequence[Part]:
        """All parts, in row order."""

    def index(self, part: Part) -> pa.Table:
        """A table with one row per image of the part: `name`, and the columns `rows` needs to locate it.

        A column named like a label of kind `class` holds that label's values, int32, null = none: the import then
        knows before it reads images which splits lack labels, and whether training lacks a class.
        """

    def rows(self, index: pa.Table) -> Iterator[Row]:
        """Read the rows of any selection of index rows, in the given order."""


@dataclass(frozen=True)
class Changed(ABC):
    """Base of sources that change the rows of another one, `source`, and nothing else."""

    source: Source

    @property
    def contents(self) -> Contents:
        return self.source.contents

    def parts(self) -> Sequence[Part]:
        return self.source.parts()

    def index(self, part: Part) -> pa.Table:
        return self.source.index(part)

    def rows(self, index: pa.Table) -> Iterator[Row]:
        return map(self.change, self.source.rows(index))

    @abstractmethod
    def change(self, row: Row) -> Row:
        """Return the row as this source has it."""


def damaged_file(folder: Folder, name: str, got: str, allowed: str) -> UserError:
    """Make the error for a published file that is damaged or incomplete."""
    return UserError(folder.file_uri(name), got, allowed, "download it again")


def printable_text(text: str) -> str:
    """Escape lone surrogates, which JSON allows but UTF-8 cannot encode."""
    return text.encode("utf-8", "backslashreplace").decode()


def check_image(data: bytes, *, convert: bool = False) -> str | None:
    """Return why `data` is not a complete JPEG, PNG or WebP that `views.decode` reads, or None.

    Checks the header and the end marker (the length for WebP), which finds truncated files without decoding; an
    animated PNG is decoded. With `convert`, files of CONVERTED pass too, whose end only decoding finds.
    """
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) < 8 + int.from_bytes(data[4:8], "little"):
        return "a truncated image"
    found = _jpeg_problem(data) or _read_header(data) if data else "an empty file"
    return found if isinstance(found, str) else _format_problem(data, *found, convert=convert) or _pixel_problem(data)


def _format_problem(data: bytes, kind: str | None, size: tuple[int, int], *, convert: bool) -> str | None:
    """Return why the import does not read a file with this header, or None."""
    if kind not in (*FORMATS, *(CONVERTED if convert else ())):
        other = "which an import with --max-side N re-encodes" if kind in CONVERTED else "not JPEG, PNG or WebP"
        return f"format {kind}, {other}"
    if min(size) < 1:
        return f"a size of {size[0]}x{size[1]}"
    if kind in FORMATS and not _has_end(data, str(kind)):
        return "a truncated image"
    return None


def _pixel_problem(data: bytes) -> str | None:
    """Return why the decoder does not show a file, by its header; by its pixels if it is an animated PNG, or None."""
    header = read_header(data)
    if header is None:
        return explain_unreadable(data)
    animated = b"acTL" in data[: data.find(b"IDAT")]  # its parts may contradict each other: only decoding tells
    return "a broken animation" if animated and decode(data, header, 1) is None else None


def _has_end(data: bytes, kind: str) -> bool:
    """Whether an image's end marker is in place; a WebP's length was checked."""
    if kind == "PNG":
        return b"IEND" in data[-64:]
    # An embedded thumbnail has an end marker too, but before the last scan begins.
    end = data.rfind(b"\xff\xd9")  # close to the end of a complete file: a short search
    return kind == "WEBP" or (end >= 0 and data.find(b"\xff\xda", end) < 0)


def _jpeg_problem(data: bytes) -> str | None:
    """Why no decoder here reads this kind of JPEG, by its start-of-frame marker; None for other files, too."""
    at = 2 if data[:2] == b"\xff\xd8" else len(data)
    while at + 9 < len(data) and data[at] == 0xFF:
        kind, size = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if 0xC0 <= kind <= 0xCF and kind not in NO_FRAMES:
            if kind not in FRAMES:
                return "a lossless or hierarchical JPEG"
            return None if data[at + 4] == 8 else f"a JPEG of {data[at + 4]} bits a channel"
        at += 1 if kind == 0xFF else 2 + size
    return None


def _read_header(data: bytes) -> tuple[str | None, tuple[int, int]] | str:
    """Format and (width, height), or the problem."""
    try:
        with Image.open(BytesIO(data)) as image:
            return f"an image of {UNSHOWN[image.mode]}" if image.mode in UNSHOWN else (image.format, image.size)
    except UnidentifiedImageError:
        return "not an image"
    except Exception as error:  # Pillow's plugins raise a dozen types on bad bytes, even RuntimeError
        return f"a broken header ({' '.join(str(error).split())[:80]})"


def read_rows(
    index: pa.Table, read: Callable[[Mapping[str, Any]], bytes], columns: Sequence[str], readers: int = READERS
) -> Iterator[Row]:
    """Read the images of index rows, `readers` at a time, and copy `columns` from the index.

    A FileNotFoundError or UnreadableError from `read` becomes the row's problem.
    """
    with ThreadPoolExecutor(readers) as pool:
        for batch in index.to_batches(max_chunksize=8 * READERS):
            yield from pool.map(lambda entry: read_row(entry, read, columns), batch.to_pylist())


def read_row(entry: Mapping[str, Any], read: Callable[[Mapping[str, Any]], bytes], columns: Sequence[str] = ()) -> Row:
    """Read one row as `read_rows` does."""
    labels = {name: entry[name] for name in columns}
    try:
        return Row(entry["name"], read(entry), labels)
    except FileNotFoundError:
        return Row(entry["name"], b"", labels, "a missing file")
    except UnreadableError as error:
        return Row(entry["name"], b"", labels, str(error))
