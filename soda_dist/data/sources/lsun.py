"""LSUN: photographs of one of the seven categories of table 10, or of several.

LMDB databases in the published .zip files or unpacked from them. Bedroom and church_outdoor are
{category}_train_lmdb/data.mdb and {category}_val_lmdb/data.mdb, each in a .zip of its folder's name, whose splits are
kept; bird, car, cat, dog and horse are {category}/data.mdb in {category}.zip, which nobody split, so 80/10/10 by a hash
of each key. A database's own folder or .zip may be named as well. A key is a hash and a value an encoded image, JPEG or
WebP. Described at https://github.com/fyu/lsun.

Databases are read by ranges of bytes, from any storage. Listing walks the leaf pages, a hundredth of the file, and the
images stay where they are; a database that is split by the hash is listed once for each of the three splits. A .zip
that stores its database is read in the same way.

A .zip that deflates it is listed by two passes over it, by one task, at the speed at which one core inflates; splits
that are drawn share them where the same process lists them. The shards of a split read the database once more together,
since their rows are in the order of the images, and blocks of a thousandth of it where a shard begins or ends: so a
published split costs three passes and drawn ones five or more. Unpacking costs one, and room on a disk. Several
categories are shuffled, which a deflated one does not allow.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from soda_dist.data import source as contract
from soda_dist.data.formats.archive import PackedMember, find_packed_members, zip_members
from soda_dist.data.formats.byte_range import ByteRange
from soda_dist.data.formats.deflate_seek import DeflatedMember
from soda_dist.data.formats.file_trees import MOST_BYTES
from soda_dist.data.formats.hashed_splits import SHARES, split_of
from soda_dist.data.formats.lmdb import RandomAccess, Record, collect_tree, open_database
from soda_dist.data.shards import Label
from soda_dist.data.source import READERS, Contents, Part, Row, Source, UnreadableError, read_rows
from soda_dist.data.storage.folder import Folder, locate, open_folder
from soda_dist.errors import UserError

Category = Literal["bedroom", "church_outdoor", "bird", "car", "cat", "dog", "horse"]
CATEGORIES = ("bedroom", "church_outdoor", "bird", "car", "cat", "dog", "horse")
FILE = "data.mdb"
SUFFIXES = {"train": "_train_lmdb", "val": "_val_lmdb"}
LAYOUTS = f"CATEGORY_{{train,val}}_lmdb.zip or CATEGORY.zip as published, or {FILE} in folders of these names"
SUBTREES = 16
"""Parts that each database is listed in, at least: a task each."""
PIECE = 65_536
"""Records that are Python's own at a time."""
RECORDS = pa.schema([("key", pa.string()), ("offset", pa.int64()), ("size", pa.int64())])
POINTS = b"points"
"""Metadata of the index of a deflated database: where it can be read from."""


class Options(contract.Options):
    """Which category."""

    category: Category | None = None
    """None: all that are there. If these are several, there is a label."""
    groups_per_shard: Annotated[int, Field(ge=1, le=4096)] = 128
    """Large shards, of 100 to 300 MB: each of a deflated database also inflates the rest of two blocks of 40 to 170."""


class Database(NamedTuple):
    """A database: its file, its category, its split, or nothing where splits are drawn, and its place in a .zip."""

    name: str
    category: str
    split: str
    packed: PackedMember | None = None

    @property
    def is_deflated(self) -> bool:
        """Whether it can only be read on from some points."""
        return self.packed is not None and not self.packed.stored


@dataclass(frozen=True)
class Lsun:
    """Rows in the order of keys, which is none, or of a deflated database in that of its images; those of several
    categories are shuffled by the import."""

    folder: Folder
    found: tuple[Database, ...]
    seed: int

    @property
    def categories(self) -> tuple[str, ...]:
        """Those that are there, in the order of table 10."""
        return tuple(dict.fromkeys(found.category for found in self.found))

    @property
    def contents(self) -> Contents:
        if len(self.categories) == 1:
            return Contents(())
        label = Label(kind="class", names=self.categories)
        return Contents((pa.field("label", pa.int32()),), {"label": label}, "label", shuffled=True)

    def parts(self) -> Sequence[Part]:
        pages = {found.name: self._subtrees(found) for found in self.found}
        return [
            Part(split, f"{found.name}#{page}")
            for split in SHARES
            for found in self.found
            if found.split in (split, "")
            for page in pages[found.name]
        ]

    def index(self, part: Part) -> pa.Table:
        name, _, page = part.name.rpartition("#")
        found = next(found for found in self.found if found.name == name)
        if found.is_deflated:
            table, points = _listed(self._inflated(found))
            table = table.replace_schema_metadata({POINTS: points})
        else:
            table = _table(open_database(self._byte_range(found)).records(int(page)))
        if not found.split:
            pieces = (table["key"].slice(start, PIECE).to_pylist() for start in range(0, len(table), PIECE))
            kept = [split_of(key, self.seed) == part.split for keys in pieces for key in keys]
            table = table.filter(pa.array(kept, pa.bool_()))
        names = pc.binary_join_element_wise(pa.scalar(name), table["key"], "#")
        label = pa.array(np.full(len(table), self.categories.index(found.category), np.int32))
        file = pa.array([name]).take(pa.array(np.zeros(len(table), np.int32)))
        table = table.set_column(0, "name", names)
        return table.append_column("file", file).append_column("label", label)

    def rows(self, index: pa.Table) -> Iterator[Row]:
        databases = {name: self._of(name) for name in index["file"].unique().to_pylist()}
        with ExitStack() as stack:
            files: dict[str, RandomAccess] = {}
            for name, found in databases.items():
                if found.is_deflated:
                    files[name] = stack.enter_context(self._inflated(found).opened(index.schema.metadata[POINTS]))
                else:
                    files[name] = stack.enter_context(self._byte_range(found).opened())

            def read(entry: Mapping[str, Any]) -> bytes:
                file, stop = files[entry["file"]], entry["offset"] + entry["size"]
                if stop > file.size():
                    raise UnreadableError(f"a record that ends at byte {stop:,} of {file.size():,}")
                if entry["size"] > MOST_BYTES:
                    raise UnreadableError(f"a record of {entry['size']:,} bytes")
                with self.folder.explained(entry["file"]):
                    return file.read_at(entry["size"], entry["offset"])

            readers = 1 if any(found.is_deflated for found in databases.values()) else READERS
            yield from read_rows(index, read, ["label"] if len(self.categories) > 1 else [], readers)

    def _of(self, name: str) -> Database:
        """The database that was listed, which another run may have found and this one not."""
        for found in self.found:
            if found.name == name:
                return found
        have = ", ".join(found.name for found in self.found)
        raise UserError(
            self.folder.uri, f"{have}, but a list of {name}", f"{name} alone", "move it back, or choose another --data"
        )

    def _subtrees(self, found: Database) -> list[int]:
        """Pages to list a database from; of a deflated one that is not known yet, so it is one."""
        if found.is_deflated:
            return [0]
        pages = open_database(self._byte_range(found)).subtrees(SUBTREES)
        if not pages:
            raise _empty(self.folder.file_uri(found.name))
        return pages

    def _byte_range(self, found: Database) -> ByteRange:
        packed = found.packed
        return ByteRange(self.folder, found.name, *(packed.start, packed.size) if packed else ())

    def _inflated(self, found: Database) -> DeflatedMember:
        assert found.packed is not None, found
        return DeflatedMember(self.folder, found.name, found.packed)


@lru_cache(maxsize=1)
def _listed(inflated: DeflatedMember) -> tuple[pa.Table, bytes]:
    """All records of a deflated database in the order of their places, and where it can be read from."""
    points = inflated.points()
    with inflated.opened(points) as file:
        database = open_database(collect_tree(inflated.uri, file.size(), file.all()))
    table = _table(record for page in database.subtrees(1) for record in database.records(page))
    if not len(table):
        raise _empty(inflated.uri)
    return table.sort_by("offset"), points


def _table(records: Iterable[Record]) -> pa.Table:
    """Keys as text, offsets and sizes; some 60 bytes a record."""
    rest, pieces = iter(records), []
    while piece := list(islice(rest, PIECE)):
        keys = [record.key.decode("ascii", "backslashreplace") for record in piece]
        columns = [[record.offset for record in piece], [record.size for record in piece]]
        pieces.append(pa.table([keys, *columns], schema=RECORDS))
    return pa.concat_tables(pieces) if pieces else RECORDS.empty_table()


def _empty(uri: str) -> UserError:
    return UserError(uri, "an empty database", LAYOUTS, "download it again")


def open_source(uri: str, options: Options) -> Source:
    """LSUN at `uri`.

    Raises:
        UserError: no database of the category, or of any; several categories of which one is deflated.
    """
    one = _named(uri)
    if one:
        return _open_one(*one, options)
    folder = open_folder(uri)
    files = {entry.name for entry in folder.files()}
    there = tuple(
        place
        for category in ([options.category] if options.category else CATEGORIES)
        for place in _of_category(folder, files, category)
    )
    if not there:
        got = f"no database of {options.category}" if options.category else "no database of a category"
        raise UserError(uri, got, LAYOUTS, "copy it there, or correct the path")
    deflated = next((place.name for place in there if place.is_deflated), None)
    if deflated and len({place.category for place in there}) > 1:
        got = f"several categories, of which {deflated} is deflated"
        raise UserError(uri, got, "one category, or databases that lie unpacked", "set category=NAME, or unpack it")
    return Lsun(folder, there, options.seed)


def _of_category(folder: Folder, files: set[str], category: str) -> list[Database]:
    """Its databases by published splits, or the one that nobody split."""
    places = [_at(folder, files, category + suffix, category, split) for split, suffix in SUFFIXES.items()]
    return [p for p in places if p] or [p for p in [_at(folder, files, category, category, "")] if p]


def _at(folder: Folder, files: set[str], base: str, category: str, split: str) -> Database | None:
    """A database in a folder or a .zip of this name; one that is unpacked is better."""
    if folder.exists(f"{base}/{FILE}"):
        return Database(f"{base}/{FILE}", category, split)
    name = f"{base}.zip"
    return Database(name, category, split, _packed(folder, name)) if name in files else None


def _packed(folder: Folder, name: str) -> PackedMember:
    """The database in a .zip."""
    found = find_packed_members(folder, name, FILE)
    if len(found) != 1:
        got = ", ".join(member.name for member in islice(zip_members(folder, name), 5)) or "nothing"
        raise UserError(folder.file_uri(name), f"a zip of {got}", f"one of one {FILE}", "download it again")
    return found[0]


def _named(uri: str) -> tuple[Folder, Database] | None:
    """The database whose own file, folder or .zip was named, if that is one; its category is the name's."""
    if uri.endswith(".zip"):
        folder, name = locate(uri)
        if not folder.exists(name):
            raise UserError(uri, "a missing file", LAYOUTS, "correct the path")
        return folder, Database(name, name.removesuffix(".zip"), "", _packed(folder, name))
    folder, name = locate(uri) if uri.rpartition("/")[2] == FILE else (open_folder(uri), FILE)
    return (folder, Database(FILE, folder.uri.rpartition("/")[2], "")) if folder.exists(name) else None


def _open_one(folder: Folder, found: Database, options: Options) -> Source:
    split = next((split for split, suffix in SUFFIXES.items() if found.category.endswith(suffix)), "")
    category = found.category.removesuffix(SUFFIXES.get(split, ""))
    if options.category not in (None, category):
        where = folder.file_uri(found.name) if found.packed else folder.uri
        raise UserError("category", options.category, f"{category}, which {where} is", "leave it out")
    return Lsun(folder, (found._replace(category=category, split=split),), options.seed)
