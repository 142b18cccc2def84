"""An LMDB database read by ranges of bytes from any storage: what the lmdb package can only do with a local file.

The format is that of mdb.c (https://github.com/LMDB/lmdb, data version 1, 64 bits, little endian). Pages of one size:
0 and 1 are metas, of which the one with the later transaction holds; the main database is a B+ tree of branch pages,
whose nodes name pages, and leaf pages, whose nodes are a key and either the value or the first of the overflow pages
where it lies in one piece. Databases with names or several values for a key are refused.
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
"""Of a page: number, flags, and where the free space between pointers and nodes begins and ends."""
META = Struct("<II16x I44x 4xHH32xQ 8xQ")
"""After a meta page's header: magic, version; page size; flags, depth and root of the main database; transaction."""
NODE = Struct("<HHHH")
"""Size of the value, low and high; flags; size of the key. In a branch the first three are the page's number."""
BRANCH, LEAF, META_PAGE = 0x01, 0x02, 0x08
KINDS = 0x7F
"""The flags that say what a page is."""
OVERFLOW_NODE, OTHER_NODES = 0x01, 0x06
DUPLICATES = 0x04
NOTHING = 2**64 - 1
PAGE_SIZES = [2**power for power in range(8, 17)]
DEEPEST = 32
MOST_PAGES = 2**46
"""So that places are int64."""


class Bytes(Protocol):
    """An open file, or a part of one."""

    def size(self) -> int:
        """Bytes in all."""

    def read_at(self, size: int, offset: int, /) -> bytes:
        """Bytes from a place on, as many as there are; several threads may ask."""


class Place(Protocol):
    """Where a database lies. Picklable."""

    @property
    def uri(self) -> str:
        """How messages name it."""

    def opened(self) -> AbstractContextManager[Bytes]:
        """To be read; what goes wrong meanwhile is explained."""


class Record(NamedTuple):
    """A key, and where its value lies in the file."""

    key: bytes
    offset: int
    size: int


class _Node(NamedTuple):
    """Of a leaf: the key, and the place of the value in the file. Of a branch: the number of a page, as `offset`."""

    key: bytes
    offset: int
    size: int


@dataclass(frozen=True)
class Database:
    """The main database of a file. Picklable."""

    place: Place
    page_size: int
    root: int
    """The number of its first page, or NOTHING."""

    def subtrees(self, wanted: int) -> list[int]:
        """Pages whose records together are all, in the order of keys: at least so many, or each a leaf."""
        if self.root == NOTHING:
            return []
        with self._opened() as pages:
            found = [self.root]
            while len(found) < wanted and (below := pages.below(found)):
                found = below
        return found

    def records(self, page: int) -> Iterator[Record]:
        """The records below a page, in the order of keys; the values are not read.

        Raises:
            UserError: pages that are damaged or missing.
        """
        with self._opened() as pages:
            leaves = [page]
            while below := pages.below(leaves):
                leaves = below
            for nodes in pages.read(leaves):
                yield from (Record(*node) for node in nodes)

    @contextmanager
    def _opened(self) -> Iterator["_Pages"]:
        with self.place.opened() as file, ThreadPoolExecutor(READERS) as pool:
            yield _Pages(self, file, pool)


def open_database(place: Place) -> Database:
    """The database at a place, from its two meta pages.

    Raises:
        UserError: another file, or a database of another kind.
    """
    uri = place.uri
    with place.opened() as file:
        first = _meta(file.read_at(HEADER.size + META.size, 0))
        if first is None:
            raise UserError(uri, "no LMDB database", f"data.mdb of version {VERSION}", "download it again")
        second = _meta(file.read_at(HEADER.size + META.size, first.page_size))
    # A database that was written once may lack the other meta page only if the file is cut.
    if second is None:
        raise UserError(uri, "no second meta page", "a whole data.mdb", "download it again")
    meta = max(second, first, key=lambda meta: meta.transaction)
    if meta.flags & DUPLICATES:
        raise UserError(uri, "a database of several values for a key", "one value for a key", "name another file")
    return Database(place, first.page_size, meta.root)


@dataclass(frozen=True)
class Tree:
    """The pages of a database that list its records, kept: where its bytes can only be read one after the other."""

    uri: str
    page_size: int
    length: int
    pages: dict[int, bytes]

    @contextmanager
    def opened(self) -> Iterator["Tree"]:
        """Nothing to open."""
        yield self

    def size(self) -> int:
        """Bytes of the whole database."""
        return self.length

    def read_at(self, size: int, offset: int, /) -> bytes:
        """Of a page that was kept; zeros, which are none, for others."""
        number, at = divmod(offset, self.page_size)
        return self.pages.get(number, bytes(self.page_size))[at : at + min(size, max(0, self.length - offset))]


def keep_tree(uri: str, length: int, blocks: Iterable[bytes | bytearray]) -> Tree:
    """The metas, branches and leaves among the bytes of a database, given in order; the first block has the first page.

    They are what names its own number and kind, an image nowhere else than by chance; a page that nothing leads to is
    not asked for. A leaf holds a key and some 16 bytes for each image.
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
        kinds = table[:, 10:12].copy().view("<u2")[:, 0] & KINDS
        for at in np.flatnonzero(own & np.isin(kinds, (BRANCH, LEAF, META_PAGE))).tolist():
            pages[number + at] = table[at].tobytes()
        number, rest = number + count, bytes(data[count * page_size :])
    return Tree(uri, page_size or PAGE_SIZES[-1], length, pages)


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
    """Pages of an open file, several read at a time. No branch is entered twice, so that a ring of them ends."""

    def __init__(self, database: Database, file: Bytes, pool: ThreadPoolExecutor) -> None:
        self._database, self._file, self._pool = database, file, pool
        self._levels, self._entered = 0, set[int]()

    def below(self, numbers: Sequence[int]) -> list[int]:
        """The pages below branch pages, in order; none below leaves."""
        if self._is_leaf(numbers[0]):
            return []
        self._levels += 1
        repeated = next((number for number in numbers if number in self._entered), None)
        if repeated is not None or self._levels > DEEPEST:
            raise self.error(numbers[0] if repeated is None else repeated)
        self._entered.update(numbers)
        found = [node.offset for nodes in self._pool.map(self._branch, numbers) for node in nodes]
        if len(set(found)) < len(found):
            raise self.error(numbers[0])
        return found

    def read(self, numbers: Sequence[int]) -> Iterator[list[_Node]]:
        """The nodes of leaf pages."""
        return self._pool.map(self._leaf, numbers)

    def error(self, number: int) -> UserError:
        """A mistake in a page."""
        return UserError(self._database.place.uri, f"a damaged page {number}", "a whole data.mdb", "download it again")

    def _page(self, number: int) -> bytes:
        size = self._database.page_size
        data = self._file.read_at(size, number * size)
        if len(data) < size:
            got = f"{self._file.size():,} bytes, which end before page {number}"
            raise UserError(self._database.place.uri, got, "a whole data.mdb", "download it again")
        if HEADER.unpack_from(data)[0] != number:
            raise self.error(number)
        return data

    def _is_leaf(self, number: int) -> bool:
        return HEADER.unpack_from(self._page(number))[1] & KINDS == LEAF

    def _branch(self, number: int) -> list[_Node]:
        nodes = []
        for data, at, (low, middle, high, _) in self._nodes(number, BRANCH):
            nodes.append(_Node(data[at:at], low | middle << 16 | high << 32, 0))
        if not nodes:
            raise self.error(number)
        return nodes

    def _leaf(self, number: int) -> list[_Node]:
        page_size, nodes = self._database.page_size, []
        for data, at, (low, high, flags, key_size) in self._nodes(number, LEAF):
            value, size = at + NODE.size + key_size, low | high << 16
            inline = 8 if flags & OVERFLOW_NODE else size
            if flags & OTHER_NODES:
                got = "a database inside the database, or several values for a key"
                allowed = "one database of one value for a key"
                raise UserError(self._database.place.uri, got, allowed, "name another file")
            if value + inline > page_size:
                raise self.error(number)
            offset = number * page_size + value
            if flags & OVERFLOW_NODE:
                first = int.from_bytes(data[value : value + 8], "little")
                if first >= MOST_PAGES:
                    raise self.error(number)
                offset = first * page_size + HEADER.size
            nodes.append(_Node(data[at + NODE.size : value], offset, size))
        return nodes

    def _nodes(self, number: int, kind: int) -> Iterator[tuple[bytes, int, tuple[int, int, int, int]]]:
        """The page, and place and header of each node in it."""
        data = self._page(number)
        _, flags, lower, upper = HEADER.unpack_from(data)
        if flags & KINDS != kind or not HEADER.size <= lower <= upper <= len(data):
            raise self.error(number)
        for pointer in range(HEADER.size, lower, 2):
            at = int.from_bytes(data[pointer : pointer + 2], "little")
            if not upper <= at <= len(data) - NODE.size:
                raise self.error(number)
            yield data, at, NODE.unpack_from(data, at)
