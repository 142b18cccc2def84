"""LSUN: photographs of one or several of the seven categories in table 10.

LMDB databases in the published .zip files, or unpacked. Bedroom and church_outdoor have published splits,
{category}_{train,val}_lmdb/data.mdb, each in a .zip named like its folder. Bird, car, cat, dog and horse are
{category}/data.mdb in {category}.zip, split 80/10/10 by a hash of each key. The path may also be a database's own
folder or .zip. Values are JPEG or WebP images. Described at https://github.com/fyu/lsun.

Databases are read by byte range from any storage. Listing reads the leaf pages, 1 % of the file, once for each split
that is drawn. A .zip that stores its database works the same way.

A deflated database is listed by one task in two passes, at the speed of inflating on one core; drawn splits share them
within a process. Its rows are in the order of the images, so that the shards of a split together read it about once
more: three passes for a published split, five or more for drawn ones. Unpacking takes one pass, and disk space. Several
categories are shuffled, which deflated databases do not allow.

Examples:
    python jobs/prepare_data.py lsun --source bedroom_train_lmdb.zip --data data/bedroom
    python jobs/prepare_data.py lsun --source lsun --data data/cat category=cat
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
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
from soda_dist.data.formats.file_trees import MAX_BYTES
from soda_dist.data.formats.hashed_splits import SHARES, split_of
from soda_dist.data.formats.listing import list_direct_files
from soda_dist.data.formats.lmdb import RandomAccess, Record, collect_tree, open_database
from soda_dist.data.shards import Label
from soda_dist.data.source import READERS, Contents, Part, Row, Source, UnreadableError, damaged_file, read_rows
from soda_dist.data.storage.folder import Folder, locate, open_folder
from soda_dist.errors import UserError

Category = Literal["bedroom", "church_outdoor", "bird", "car", "cat", "dog", "horse"]
CATEGORIES = ("bedroom", "church_outdoor", "bird", "car", "cat", "dog", "horse")
FILE = "data.mdb"
SUFFIXES = {"train": "_train_lmdb", "val": "_val_lmdb"}
LAYOUTS = f"CATEGORY_{{train,val}}_lmdb.zip or CATEGORY.zip as published, or {FILE} in folders of these names"
MIN_LISTING_TASKS = 16
RECORDS_PER_PIECE = 65_536
RECORDS = pa.schema([("key", pa.string()), ("offset", pa.int64()), ("size", pa.int64())])
POINTS = b"points"
"""Key in the index's metadata of the seek points of a deflated database."""


class Options(contract.Options):
    category: Category | None = None
    """None = all that exist; several categories get a label."""
    groups_per_shard: Annotated[int, Field(ge=1, le=4096)] = 128
    """Large shards (100 to 300 MB), since each may inflate two partial blocks of 40 to 170 MB in addition."""


class Database(NamedTuple):
    """A database: file, category, split (empty if drawn), and location in a .zip."""

    name: str
    category: str
    split: str
    packed: PackedMember | None = None

    @property
    def is_deflated(self) -> bool:
        """Whether it has random access only through seek points."""
        return self.packed is not None and not self.packed.stored


@dataclass(frozen=True)
class Lsun:
    """Rows in the order of keys (hashes), or of images if deflated; the import shuffles several categories."""

    folder: Folder
    databases: tuple[Database, ...]
    seed: int

    @property
    def categories(self) -> tuple[str, ...]:
        """The categories found, in the order of table 10."""
        return tuple(dict.fromkeys(found.category for found in self.databases))

    @property
    def contents(self) -> Contents:
        drawn = any(not found.split for found in self.databases)
        if len(self.categories) == 1:
            return Contents((), drawn=drawn)
        labels = {"label": Label(kind="class", names=self.categories)}
        return replace(Contents.with_labels(labels, "label", shuffled=True), drawn=drawn)

    def parts(self) -> Sequence[Part]:
        pages = {found.name: self._subtrees(found) for found in self.databases}
        return [
            Part(split, f"{found.name}#{page}")
            for split in SHARES
            for found in self.databases
            if found.split in (split, "")
            for page in pages[found.name]
        ]

    def index(self, part: Part) -> pa.Table:
        name, _, page = part.name.rpartition("#")
        found = next(found for found in self.databases if found.name == name)
        if found.is_deflated:
            table, points = _listed(self._inflated(found))
            table = table.replace_schema_metadata({POINTS: points})
        else:
            table = _table(open_database(self._byte_range(found)).records(int(page)))
        if not found.split:
            batches = table.select(["key"]).to_batches(max_chunksize=RECORDS_PER_PIECE)
            chosen = [split_of(key, self.seed) == part.split for batch in batches for key in batch["key"].to_pylist()]
            table = table.filter(pa.array(chosen, pa.bool_()))
        names = pc.binary_join_element_wise(pa.scalar(name), table["key"], "#")
        label = pa.array(np.full(len(table), self.categories.index(found.category), np.int32))
        file = pa.array([name]).take(pa.array(np.zeros(len(table), np.int32)))
        table = table.set_column(0, "name", names)
        return table.append_column("file", file).append_column("label", label)

    def rows(self, index: pa.Table) -> Iterator[Row]:
        databases = {name: self._database(name) for name in index["file"].unique().to_pylist()}
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
                if entry["size"] > MAX_BYTES:
                    raise UnreadableError(f"a record of {entry['size']:,} bytes")
                with self.folder.explained(entry["file"]):
                    return file.read_at(entry["size"], entry["offset"])

            readers = 1 if any(found.is_deflated for found in databases.values()) else READERS
            yield from read_rows(index, read, ["label"] if len(self.categories) > 1 else [], readers)

    def _database(self, name: str) -> Database:
        """Find the database by name; an index from an earlier run may refer to one that has gone."""
        for found in self.databases:
            if found.name == name:
                return found
        got = f"{', '.join(found.name for found in self.databases)} instead of {name}, which is already listed"
        raise UserError(self.folder.uri, got, f"{name} alone", "move it back, or choose another --data")

    def _subtrees(self, found: Database) -> list[int]:
        if found.is_deflated:
            return [0]  # its pages are unknown before listing
        pages = open_database(self._byte_range(found)).subtrees(MIN_LISTING_TASKS)
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
    """List the records of a deflated database by offset, and find its seek points."""
    points = inflated.points()
    with inflated.opened(points) as file:
        database = open_database(collect_tree(inflated.uri, file.size(), file.all()))
    table = _table(record for page in database.subtrees(1) for record in database.records(page))
    if not len(table):
        raise _empty(inflated.uri)
    return table.sort_by("offset"), points


def _table(records: Iterable[Record]) -> pa.Table:
    """Collect keys as text, offsets and sizes; about 60 bytes per record."""
    remaining, pieces = iter(records), []
    while piece := list(islice(remaining, RECORDS_PER_PIECE)):
        keys = [record.key.decode("ascii", "backslashreplace") for record in piece]
        columns = [[record.offset for record in piece], [record.size for record in piece]]
        pieces.append(pa.table([keys, *columns], schema=RECORDS))
    return pa.concat_tables(pieces) if pieces else RECORDS.empty_table()


def _empty(uri: str) -> UserError:
    return UserError(uri, "an empty database", LAYOUTS, "download it again")


def open_source(uri: str, options: Options) -> Source:
    """Open LSUN at `uri`.

    Raises:
        UserError: no database (of the category), or several categories with a deflated database.
    """
    one = _find_one(uri)
    if one:
        return _open_one(*one, options)
    folder = open_folder(uri)
    files = {entry.name for entry in list_direct_files(folder)}
    categories = [options.category] if options.category else CATEGORIES
    databases = tuple(found for category in categories for found in _of_category(folder, files, category))
    if not databases:
        got = f"no database of {options.category}" if options.category else "no database of a category"
        raise UserError(uri, got, LAYOUTS, "add it, or correct the path")
    deflated = next((found.name for found in databases if found.is_deflated), None)
    if deflated and len({found.category for found in databases}) > 1:
        got = f"several categories, of which {deflated} is deflated"
        raise UserError(uri, got, "one category, or unpacked databases", "set category=NAME, or unpack it")
    return Lsun(folder, databases, options.seed)


def _of_category(folder: Folder, files: set[str], category: str) -> list[Database]:
    """Find a category's databases by published split, or its unsplit one."""
    by_split = [_find(folder, files, category + suffix, category, split) for split, suffix in SUFFIXES.items()]
    return [d for d in by_split if d] or [d for d in [_find(folder, files, category, category, "")] if d]


def _find(folder: Folder, files: set[str], base: str, category: str, split: str) -> Database | None:
    """Find a database in the folder or .zip `base`; prefers the folder."""
    if folder.exists(f"{base}/{FILE}"):
        return Database(f"{base}/{FILE}", category, split)
    name = f"{base}.zip"
    return Database(name, category, split, _packed(folder, name)) if name in files else None


def _packed(folder: Folder, name: str) -> PackedMember:
    found = find_packed_members(folder, name, FILE)
    if len(found) != 1:
        got = ", ".join(member.name for member in islice(zip_members(folder, name), 5)) or "nothing"
        raise damaged_file(folder, name, f"a zip of {got}", f"exactly one {FILE}")
    return found[0]


def _find_one(uri: str) -> tuple[Folder, Database] | None:
    """Find the database if `uri` is its file, folder or .zip; its name tells the category."""
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
