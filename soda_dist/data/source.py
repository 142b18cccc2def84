"""What a published data set must offer to be imported."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from typing import Annotated, Any, NamedTuple, Protocol

import pyarrow as pa
from PIL import Image, UnidentifiedImageError
from pydantic import Field

from soda_dist.config.fields import Node
from soda_dist.data.shards import Label

FORMATS = ("JPEG", "MPO", "PNG", "WEBP")
READERS = 8
"""Files read at a time by one task: a request to an object store is mostly waiting."""


class Options(Node):
    """Options of every kind of source."""

    rows_per_group: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Rows in a row group, the unit of reading; none: the source's own hint."""
    groups_per_shard: Annotated[int, Field(ge=1, le=4096)] = 16
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of everything that is drawn: the order of ImageNet's rows, the synthetic objects and cameras."""
    max_side: Annotated[int, Field(ge=1)] | None = None
    """Pixels; larger images are made smaller, and all of them JPEG; none: as published."""
    quality: Annotated[int, Field(ge=1, le=100)] | None = None
    """Of JPEG, which all images are made; none: 90 with `max_side`, else images stay as published."""


class UnreadableError(Exception):
    """Why a row's image cannot be read: what its `problem` says."""


class Part(NamedTuple):
    """What is listed at a time: a class, an archive, a file."""

    split: str
    name: str


class Row(NamedTuple):
    """One image, or why there is none."""

    name: str
    image: bytes
    columns: Mapping[str, Any]
    problem: str | None = None


@dataclass(frozen=True)
class Contents:
    """What is known of a data set before its rows are listed."""

    columns: tuple[pa.Field, ...]
    """Of its own, beside key, image and name."""
    labels: dict[str, Label] = field(default_factory=dict)
    main_label: str | None = None
    rows_per_group: int = 64
    shuffled: bool = False
    """Whether the import puts the rows in a random order, since the published one is sorted by class. Never where rows
    have an `object`: the views of one must stay neighbours, since pairs of an object look for them around a row."""


class Source(Protocol):
    """A published data set. Picklable: its methods run in tasks on any machine."""

    @property
    def contents(self) -> Contents:
        """Columns and labels."""

    def parts(self) -> Sequence[Part]:
        """All parts, in the order of their rows."""

    def index(self, part: Part) -> pa.Table:
        """One row for each row of the part: `name`, and whatever `rows` needs to find it."""

    def rows(self, index: pa.Table) -> Iterator[Row]:
        """The rows of any selection of index rows, in the order given."""


def sound_text(text: str) -> str:
    """The text as files and messages can hold it: halves of characters, which JSON can spell, as Python writes them."""
    return text.encode("utf-8", "backslashreplace").decode()


def check_image(data: bytes) -> str | None:
    """Why `data` is not a whole JPEG, PNG or WebP, or None.

    Reads the header and looks for the end marker (of WebP the length), so that truncated files are found without
    decoding.
    """
    if not data:
        return "an empty file"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) < 8 + int.from_bytes(data[4:8], "little"):
        return "a truncated image"
    header = _read_header(data)
    if isinstance(header, str):
        return header
    kind, (width, height) = header
    if kind not in FORMATS:
        return f"format {kind}, not JPEG, PNG or WebP"
    if width < 1 or height < 1:
        return f"a size of {width}x{height}"
    # A thumbnail has its own end marker, but before the last scan begins. A cut WebP was found above.
    if kind == "PNG":
        whole = b"IEND" in data[-64:]
    else:
        end = data.rfind(b"\xff\xd9")  # near the end of a whole file, so that little is searched
        whole = kind == "WEBP" or (end >= 0 and data.find(b"\xff\xda", end) < 0)
    return None if whole else "a truncated image"


def _read_header(data: bytes) -> tuple[str | None, tuple[int, int]] | str:
    """Format, and width and height, or why there are none."""
    try:
        with Image.open(BytesIO(data)) as image:
            return image.format, image.size
    except UnidentifiedImageError:
        return "not an image"
    except Exception as error:  # Pillow's plugins raise a dozen types on bad bytes, RuntimeError of a broken AVIF
        return f"a broken header ({' '.join(str(error).split())[:80]})"


def read_rows(
    index: pa.Table, read: Callable[[Mapping[str, Any]], bytes], columns: Sequence[str], readers: int = READERS
) -> Iterator[Row]:
    """Rows whose images are files of their own, `readers` read at a time; `columns` are taken from the index.

    `read` may raise FileNotFoundError or UnreadableError: then the row has a problem.
    """

    def row(entry: Mapping[str, Any]) -> Row:
        labels = {name: entry[name] for name in columns}
        try:
            return Row(entry["name"], read(entry), labels)
        except FileNotFoundError:
            return Row(entry["name"], b"", labels, "a missing file")
        except UnreadableError as error:
            return Row(entry["name"], b"", labels, str(error))

    with ThreadPoolExecutor(readers) as pool:
        for batch in index.to_batches(max_chunksize=8 * READERS):
            yield from pool.map(row, batch.to_pylist())
