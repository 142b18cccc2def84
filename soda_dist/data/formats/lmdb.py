"""LMDB databases read by byte range from any storage; the lmdb package needs a local file.

The format is that of mdb.c (https://github.com/LMDB/lmdb, data version 1, 64 bits, little endian). Of the meta pages 0
and 1, the one with the later transaction is valid. The main database is a B+ tree: nodes of branch pages refer to
pages; nodes of leaf pages have a key and either the value or the first of its contiguous overflow pages. Named
databases and several values per key are refused.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from struct import Struct
from typing import NamedTuple, Protocol

import numpy as np

from soda_dist.data.source import READERS
from soda_dist.errors import UserError

MAGIC, VERSION = 0xBEEFC0DE, 1
HEADER = Struct("<Q2xHHH")
"""Page header: number, flags, start and end of the free space between pointers and nodes."""
META = Struct("<II16x I44x 4xHH32xQ 8xQ")
"""Follows a meta page's header: magic, version; page size; flags, depth and root of the main database; transaction."""
NODE = Struct("<HHHH")
"""Value size, low and high; flags; key size. In a branch the first three are the page number."""
BRANCH, LEAF, META_PAGE = 0x01, 0x02, 0x08
KIND_MASK = 0x7F
OVERFLOW_NODE, OTHER_NODES = 0x01, 0x06
DUPLICATES = 0x04
NOTHING = 2**64 - 1
PAGE_SIZES = [2**power for power in range(8, 17)]
MAX_DEPTH = 32
MAX_PAGES = 2**46
"""Keeps offsets within int64."""


class RandomAccess(Protocol):
    """An open file, or a part of one. Thread-safe."""

    def size(self) -> int:
        """Size in bytes."""

    def read_at(self, size: int, offset: int, /) -> bytes:
        """Read up to `size` bytes at `offset`; fewer at the end."""


class Place(Protocol):
    """Location of a database. Picklable."""

    @property
    def uri(self) -> str:
        """The database's name in messages."""

    def opened(self) -> AbstractContextManager[RandomAccess]:
        """Open it; storage errors while open are explained."""


class Record(NamedTuple):
    """A key, and the location of its value in the file."""

    key: bytes
    offset: int
    size: int


@dataclass(frozen=True)
class Database:
    """The main database of a file. Picklable."""

    place: Place
    page_size: int
    root: int
    """Page number, or NOTHING if empty."""

    def subtrees(self, wanted: int) -> list[int]:
        """Pages, in key order, whose subtrees partition the records: at least `wanted`, or all leaves."""
        if self.root == NOTHING:
            return []
        with self._opened() as pages:
            found = [self.root]
            while len(found) < wanted and (below := pages.below(found)):
                found = below
        return found

    def records(self, page: int) -> Iterator[Record]:
        """List the records below a page in key order, without reading values.

        Raises:
            UserError: damaged or missing pages.
        """
        with self._opened() as pages:
            leaves = [page]
            while below := pages.below(leaves):
                leaves = below
            for found in pages.read(leaves):
                yield from found

    @contextmanager
    def _opened(self) -> Iterator["_Pages"]:
        with self.place.opened() as file, ThreadPoolExecutor(READERS) as pool:
            yield _Pages(self, file, pool)


def open_database(place: Place) -> Database:
    """Open a database by its two meta pages.

    Raises:
        UserError: not an LMDB database, a truncated one, or several values per key.
    """
    uri = place.uri
    with place.opened() as file:
        first = _meta(file.read_at(HEADER.size + META.size, 0))
        if first is None:
            raise UserError(uri, "no LMDB database", f"data.mdb of version {VERSION}", "download it again")
        second = _meta(file.read_at(HEADER.size + META.size, first.page_size))
    if second is None:
        raise UserError(uri, "no second meta page", "a valid data.mdb", "download it again")
    meta = max(second, first, key=lambda meta: meta.transaction)
    if meta.flags & DUPLICATES:
        raise UserError(uri, "a database with several values per key", "one value per key", "choose another file")
    return Database(place, first.page_size, meta.root)


@dataclass(frozen=True)
class TreePages:
    """The tree pages of a database in memory, for a file that allows only sequential reads."""

    uri: str
    page_size: int
    length: int
    pages: dict[int, bytes]

    @contextmanager
    def opened(self) -> Iterator["TreePages"]:
        yield self

    def size(self) -> int:
        return self.length

    def read_at(self, size: int, offset: int, /) -> bytes:
        """Read within a tree page; other pages read as zeros, which is no valid page."""
        number, at = divmod(offset, self.page_size)
        return self.pages.get(number, bytes(self.page_size))[at : at + min(size, max(0, self.length - offset))]


def collect_tree(uri: str, length: int, blocks: Iterable[bytes | bytearray]) -> TreePages:
    """Collect the meta, branch and leaf pages from a database's bytes; the first block has the whole first page.

    These pages are recognised by their own number and kind. Image data may match by chance, but no node refers to it.
    """
    pages, page_size, number, rest = dict[int, bytes](), 0, 0, b""
    for block in blocks:
        if not page_size:
            first = _meta(block)
            page_size = first.page_size if first else PAGE_SIZES[-1]
        data = rest + block if rest else block
        count = len(data) // page_size
        table = np.frombuffer(data, np.uint8, count * page_size).reshape(count, page_size)
        own = table[:, :8].copy().view("<u8")[:, 0] == np.arange(number, number + count, dtype=np.uint64)
        kinds = table[:, 10:12].copy().view("<u2")[:, 0] & KIND_MASK
        for at in np.flatnonzero(own & np.isin(kinds, (BRANCH, LEAF, META_PAGE))).tolist():
            pages[number + at] = table[at].tobytes()
        number, rest = number + count, bytes(data[count * page_size :])
    return TreePages(uri, page_size or PAGE_SIZES[-1], length, pages)


class _Meta(NamedTuple):
    page_size: int
    flags: int
    root: int
    transaction: int


def _meta(data: bytes | bytearray) -> _Meta | None:
    if len(data) < HEADER.size + META.size or not HEADER.unpack_from(data)[1] & META_PAGE:
        return None
    magic, version, page_size, flags, _, root, transaction = META.unpack_from(data, HEADER.size)
    known = (magic, version) == (MAGIC, VERSION) and page_size in PAGE_SIZES
    return _Meta(page_size, flags, root, transaction) if known else None


class _Pages:
    """Pages of an open file, read concurrently. A branch visited twice is an error, so that cycles end."""

    def __init__(self, database: Database, file: RandomAccess, pool: ThreadPoolExecutor) -> None:
        self._database, self._file, self._pool = database, file, pool
        self._levels, self._visited = 0, set[int]()

    def below(self, numbers: Sequence[int]) -> list[int]:
        """List the pages below branch pages, in order; empty for leaves."""
        if self._is_leaf(numbers[0]):
            return []
        self._levels += 1
        repeated = next((number for number in numbers if number in self._visited), None)
        if repeated is not None or self._levels > MAX_DEPTH:
            raise self.error(numbers[0] if repeated is None else repeated)
        self._visited.update(numbers)
        found = [child for children in self._pool.map(self._branch, numbers) for child in children]
        if len(set(found)) < len(found):
            raise self.error(numbers[0])
        return found

    def read(self, numbers: Sequence[int]) -> Iterator[list[Record]]:
        """Read the records of leaf pages."""
        return self._pool.map(self._leaf, numbers)

    def error(self, number: int) -> UserError:
        """Make the error for a damaged page."""
        return UserError(self._database.place.uri, f"a damaged page {number}", "a valid data.mdb", "download it again")

    def _page(self, number: int) -> bytes:
        size = self._database.page_size
        data = self._file.read_at(size, number * size)
        if len(data) < size:
            got = f"{self._file.size():,} bytes, too few for page {number}"
            raise UserError(self._database.place.uri, got, "a valid data.mdb", "download it again")
        if HEADER.unpack_from(data)[0] != number:
            raise self.error(number)
        return data

    def _is_leaf(self, number: int) -> bool:
        return HEADER.unpack_from(self._page(number))[1] & KIND_MASK == LEAF

    def _branch(self, number: int) -> list[int]:
        children = [low | middle << 16 | high << 32 for _, _, (low, middle, high, _) in self._nodes(number, BRANCH)]
        if not children:
            raise self.error(number)
        return children

    def _leaf(self, number: int) -> list[Record]:
        page_size, records = self._database.page_size, []
        for data, at, (low, high, flags, key_size) in self._nodes(number, LEAF):
            value, size = at + NODE.size + key_size, low | high << 16
            inline = 8 if flags & OVERFLOW_NODE else size
            if flags & OTHER_NODES:
                got = "a database inside the database, or several values per key"
                allowed = "one database with one value per key"
                raise UserError(self._database.place.uri, got, allowed, "choose another file")
            if value + inline > page_size:
                raise self.error(number)
            offset = number * page_size + value
            if flags & OVERFLOW_NODE:
                first = int.from_bytes(data[value : value + 8], "little")
                if first >= MAX_PAGES:
                    raise self.error(number)
                offset = first * page_size + HEADER.size
            records.append(Record(data[at + NODE.size : value], offset, size))
        return records

    def _nodes(self, number: int, kind: int) -> Iterator[tuple[bytes, int, tuple[int, int, int, int]]]:
        """Yield the page, and offset and header of each of its nodes."""
        data = self._page(number)
        _, flags, lower, upper = HEADER.unpack_from(data)
        if flags & KIND_MASK != kind or not HEADER.size <= lower <= upper <= len(data):
            raise self.error(number)
        for pointer in range(HEADER.size, lower, 2):
            at = int.from_bytes(data[pointer : pointer + 2], "little")
            if not upper <= at <= len(data) - NODE.size:
                raise self.error(number)
            yield data, at, NODE.unpack_from(data, at)
