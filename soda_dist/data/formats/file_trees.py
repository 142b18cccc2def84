"""Trees of image files: a folder in any storage, or a .zip, .tar or .tar.gz read in place.

Published archives and their unpacked folders thus share one layout, without hidden files (`published_names`).
"""

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import pyarrow as pa

from soda_dist.data.formats.archive import (
    Member,
    check_name,
    gzip_members,
    is_gzip,
    read_gzip_members,
    read_zip_member,
    tar_members,
    zip_members,
)
from soda_dist.data.formats.listing import list_direct_files, list_files, list_folders
from soda_dist.data.source import Row, UnreadableError, read_row, read_rows
from soda_dist.data.storage.folder import Folder, locate, open_folder
from soda_dist.errors import UserError

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
MAX_BYTES = 256 * 2**20
"""Larger files are rejected unread."""
HELD_BYTES = 256 * 2**20
"""Bytes of images in memory per pass over a .tar.gz."""
MAX_NAME_BYTES, MAX_PART_BYTES = 1024, 255
"""Limits of storage systems, in bytes: of a file name, and of each part between two `/`."""
NOWHERE = -1
"""Offset of a file that the archive lacks."""

Read = Callable[[Member], bytes]
"""Thread-safe reader of a located file; raises FileNotFoundError or UnreadableError."""


class Tree(Protocol):
    """Files by name, with `/` between parts. Picklable."""

    @property
    def folder(self) -> Folder:
        """The folder itself, or the archive's folder."""

    @property
    def uri(self) -> str:
        """The tree's name in messages."""

    def files(self, prefix: str = "") -> Sequence[Member]:
        """List the files whose names start with `prefix`, sorted by name."""

    def direct_files(self, prefix: str = "") -> Sequence[Member]:
        """List the files directly in the folder `prefix`, which ends with `/` or is empty."""

    def folders(self, prefix: str = "") -> Sequence[str]:
        """List the folders directly in the folder `prefix`, sorted by name."""

    def find(self, names: Sequence[str]) -> Sequence[Member]:
        """Locate files by name; missing ones come out in `rows`.

        Raises:
            UserError: a name that leads out of the tree.
        """

    def read(self, names: Sequence[str]) -> dict[str, bytes]:
        """Read small files; missing ones are omitted."""

    def rows(self, index: pa.Table, columns: Sequence[str]) -> Iterator[Row]:
        """Read the images of an index made by `file_index`, with `columns` from it."""


def open_tree(uri: str) -> Tree:
    """Open the folder or archive at `uri`, reading at most an archive's first bytes."""
    return _open_archive(*locate(uri)) if uri.endswith(ARCHIVES) else FolderTree(open_folder(uri))


def open_trees(uri: str, archives: Sequence[str]) -> Iterator[Tree]:
    """Open the folder or archive at `uri`, then those of the named archives that a folder contains."""
    tree = open_tree(uri)
    yield tree
    if isinstance(tree, FolderTree):
        for name in archives:
            if tree.folder.exists(name):
                yield _open_archive(tree.folder, name)


def _open_archive(folder: Folder, name: str) -> Tree:
    if not folder.exists(name):
        raise UserError(folder.file_uri(name), "a missing file", "a folder or an archive", "correct the path")
    if name.endswith(".zip"):
        return ZipTree(folder, name)
    return GzipTree(folder, name) if is_gzip(folder, name) else TarTree(folder, name)


def folder_of(tree: Tree) -> Folder | None:
    """Return the folder in which the tree's names are paths; None for an archive."""
    return tree.folder if isinstance(tree, FolderTree) else None


def file_index(found: Sequence[Member], **columns: pa.Array) -> pa.Table:
    """Make the index that `Tree.rows` reads files by, with further columns."""
    names, offsets, sizes = zip(*found, strict=True) if found else ((), (), ())
    places = {"offset": pa.array(offsets, pa.int64()), "size": pa.array(sizes, pa.int64())}
    return pa.table({"name": pa.array(names, pa.string()), **places, **columns})


class _Placed(ABC):
    """Rows of a tree with random access to its files."""

    @abstractmethod
    def reader(self) -> AbstractContextManager[Read]:
        """Open it for reading located files."""

    def rows(self, index: pa.Table, columns: Sequence[str]) -> Iterator[Row]:
        with self.reader() as read:
            yield from read_rows(index, lambda entry: read(_member(entry)), columns)


@dataclass(frozen=True)
class FolderTree(_Placed):
    """A folder of any storage."""

    folder: Folder

    @property
    def uri(self) -> str:
        return self.folder.uri

    def files(self, prefix: str = "") -> Sequence[Member]:
        return [Member(entry.name, 0, entry.size) for entry in list_files(self.folder, prefix)]

    def direct_files(self, prefix: str = "") -> Sequence[Member]:
        return [Member(entry.name, 0, entry.size) for entry in list_direct_files(self.folder, prefix.rstrip("/"))]

    def folders(self, prefix: str = "") -> Sequence[str]:
        return list_folders(self.folder, prefix.rstrip("/"))

    def find(self, names: Sequence[str]) -> Sequence[Member]:
        for name in names:
            check_name(name, self.uri)
            longest = max(len(part.encode()) for part in name.split("/"))
            if len(name.encode()) > MAX_NAME_BYTES or longest > MAX_PART_BYTES:
                allowed = f"names of {MAX_NAME_BYTES} bytes, {MAX_PART_BYTES} between two /"
                raise UserError(self.uri, f"the name {name[:80]}...", allowed, "correct the list")
        return [Member(name, 0, 0) for name in names]

    def read(self, names: Sequence[str]) -> dict[str, bytes]:
        return {name: self.folder.read(name) for name in names if self.folder.exists(name)}

    @contextmanager
    def reader(self) -> Iterator[Read]:
        def read(member: Member) -> bytes:
            _check_size(member)
            return self.folder.read(member.name)

        yield read


@dataclass(frozen=True)
class Archive(ABC):
    """An archive, which each process lists once."""

    folder: Folder
    name: str

    @property
    def uri(self) -> str:
        return self.folder.file_uri(self.name)

    def files(self, prefix: str = "") -> Sequence[Member]:
        listing = _listing(self)
        return listing.members[slice(*listing.span(prefix))]

    def direct_files(self, prefix: str = "") -> Sequence[Member]:
        return [member for member in self.files(prefix) if "/" not in member.name[len(prefix) :]]

    def folders(self, prefix: str = "") -> Sequence[str]:
        listing, found = _listing(self), list[str]()
        at, stop = listing.span(prefix)
        while at < stop:
            head, slash, _ = listing.names[at][len(prefix) :].partition("/")
            found += [head] if slash else []
            at = listing.span(f"{prefix}{head}/")[1] if slash else at + 1
        return sorted(found)

    def find(self, names: Sequence[str]) -> Sequence[Member]:
        listing = _listing(self)
        places = [(name, bisect_left(listing.names, name)) for name in names]
        return [
            listing.members[at] if listing.names[at : at + 1] == [name] else Member(name, NOWHERE, 0)
            for name, at in places
        ]

    @abstractmethod
    def list_members(self) -> Iterator[Member]:
        """List the members in archive order."""


class TarTree(_Placed, Archive):
    """An uncompressed tar."""

    def list_members(self) -> Iterator[Member]:
        return tar_members(self.folder, self.name, small=True)

    def read(self, names: Sequence[str]) -> dict[str, bytes]:
        with self.folder.explained(self.name), self.folder.open(self.name) as file:
            found = (member for member in self.find(names) if member.offset != NOWHERE)
            return {member.name: file.read_at(member.size, member.offset) for member in found}

    @contextmanager
    def reader(self) -> Iterator[Read]:
        with self.folder.open(self.name) as file:

            def read(member: Member) -> bytes:
                with self.folder.explained(self.name):
                    return file.read_at(member.size, _offset(member))

            yield read


class ZipTree(_Placed, Archive):
    """A zip with stored or deflated members."""

    def list_members(self) -> Iterator[Member]:
        return zip_members(self.folder, self.name)

    def read(self, names: Sequence[str]) -> dict[str, bytes]:
        data = {}
        with self.folder.explained(self.name), self.folder.open(self.name) as file:
            for member in self.find(names):
                if member.offset != NOWHERE:
                    content = read_zip_member(file, member, MAX_BYTES)
                    if content is None:
                        raise UserError(self.uri, f"a damaged {member.name}", "a complete zip", "download it again")
                    data[member.name] = content
        return data

    @contextmanager
    def reader(self) -> Iterator[Read]:
        with self.folder.open(self.name) as file:

            def read(member: Member) -> bytes:
                member = member._replace(offset=_offset(member))
                with self.folder.explained(self.name):
                    content = read_zip_member(file, member, MAX_BYTES)
                if content is None:
                    raise UnreadableError(f"a damaged member, or one larger than {MAX_BYTES:,} bytes")
                return content

            yield read


class GzipTree(Archive):
    """A tar.gz, read from its start for every `HELD_BYTES` of rows."""

    def list_members(self) -> Iterator[Member]:
        return gzip_members(self.folder, self.name)

    def read(self, names: Sequence[str]) -> dict[str, bytes]:
        found = [member for member in self.find(names) if member.offset != NOWHERE]
        data = read_gzip_members(self.folder, self.name, found)
        return {member.name: content for member, content in zip(found, data, strict=True)}

    def rows(self, index: pa.Table, columns: Sequence[str]) -> Iterator[Row]:
        held, count = list[dict[str, Any]](), 0
        for batch in index.to_batches(max_chunksize=1024):
            for entry in batch.to_pylist():
                if held and count + entry["size"] > HELD_BYTES:
                    yield from self._pass(held, columns)
                    held, count = [], 0
                held.append(entry)
                count += entry["size"]
        yield from self._pass(held, columns)

    def _pass(self, entries: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Iterator[Row]:
        def check(entry: Mapping[str, Any]) -> bytes:
            _offset(_member(entry))
            return b""

        rows = [read_row(entry, check, columns) for entry in entries]
        found = [_member(entry) for entry, row in zip(entries, rows, strict=True) if not row.problem]
        data = iter(read_gzip_members(self.folder, self.name, found))
        for row in rows:
            yield row if row.problem else row._replace(image=next(data))


PlacedTree = FolderTree | TarTree | ZipTree
"""Trees with random access to files."""


class _Listing(NamedTuple):
    """Members sorted by name."""

    names: list[str]
    members: list[Member]

    def span(self, prefix: str) -> tuple[int, int]:
        """Range of the names with this prefix."""
        return bisect_left(self.names, prefix), bisect_left(self.names, prefix + "\U0010ffff")


@lru_cache(maxsize=2)
def _listing(archive: Archive) -> _Listing:
    cleaned = (member._replace(name=member.name.removeprefix("./")) for member in archive.list_members())
    # Of several members with one name the last is valid.
    found = sorted({member.name: member for member in cleaned}.values())
    return _Listing([member.name for member in found], found)


def _member(entry: Mapping[str, Any]) -> Member:
    return Member(entry["name"], entry["offset"], entry["size"])


def _offset(member: Member) -> int:
    if member.offset == NOWHERE:
        raise FileNotFoundError(member.name)
    _check_size(member)
    return member.offset


def _check_size(member: Member) -> None:
    if member.size > MAX_BYTES:
        raise UnreadableError(f"a file of {member.size:,} bytes")
