"""LSUN: photographs of one of the seven categories of table 10, or of several.

LMDB databases as they come out of the published .zip files: bedroom and church_outdoor as
{category}_train_lmdb/data.mdb and {category}_val_lmdb/data.mdb, whose splits are kept; bird, car, cat, dog and horse as
{category}/data.mdb, which nobody split, so 80/10/10 by a hash of each key. A database's own folder may be named as
well. A key is a hash and a value an encoded image, JPEG or WebP. Described at https://github.com/fyu/lsun.

Databases are read by ranges of bytes, from any storage. Listing walks the leaf pages, a hundredth of the file, and the
images stay where they are; a database that is split by the hash is listed once for each of the three splits.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import pyarrow as pa

from soda_dist.data.shards import Label
from soda_dist.data.sources import contract
from soda_dist.data.sources.contract import Contents, Part, Row, Source, UnreadableError, read_rows
from soda_dist.data.sources.lmdb_file import open_database
from soda_dist.data.sources.splits import SHARES, split_of
from soda_dist.data.sources.trees import MOST_BYTES
from soda_dist.data.storage import Folder, locate, open_folder
from soda_dist.errors import UserError

Category = Literal["bedroom", "church_outdoor", "bird", "car", "cat", "dog", "horse"]
CATEGORIES = ("bedroom", "church_outdoor", "bird", "car", "cat", "dog", "horse")
FILE = "data.mdb"
SUFFIXES = {"train": "_train_lmdb", "val": "_val_lmdb"}
LAYOUTS = f"CATEGORY_{{train,val}}_lmdb/{FILE} or CATEGORY/{FILE}, unpacked from their .zip"
SUBTREES = 16
"""Parts that each database is listed in, at least: a task each."""


class Options(contract.Options):
    """Which category."""

    category: Category | None = None
    """None: all that are there. If these are several, there is a label."""


class Found(NamedTuple):
    """A database: its file, its category, and its split, or nothing where splits are drawn."""

    name: str
    category: str
    split: str


@dataclass(frozen=True)
class Lsun:
    """Rows in the order of keys, which is none; those of several categories are shuffled by the import."""

    folder: Folder
    found: tuple[Found, ...]
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
        pages = {found.name: open_database(self.folder, found.name).subtrees(SUBTREES) for found in self.found}
        empty = next((name for name, numbers in pages.items() if not numbers), None)
        if empty:
            raise UserError(self.folder.file_uri(empty), "an empty database", LAYOUTS, "download it again")
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
        rows = [
            (f"{name}#{key}", record.offset, record.size)
            for record in open_database(self.folder, name).records(int(page))
            for key in [record.key.decode("ascii", "backslashreplace")]
            if found.split or split_of(key, self.seed) == part.split
        ]
        names, offsets, sizes = zip(*rows, strict=True) if rows else ((), (), ())
        return pa.table(
            {
                "name": pa.array(names, pa.string()),
                "file": pa.array([name] * len(rows), pa.string()),
                "offset": pa.array(offsets, pa.int64()),
                "size": pa.array(sizes, pa.int64()),
                "label": pa.array([self.categories.index(found.category)] * len(rows), pa.int32()),
            }
        )

    def rows(self, index: pa.Table) -> Iterator[Row]:
        with ExitStack() as stack:
            names = index["file"].unique().to_pylist()
            files = {name: stack.enter_context(self.folder.open(name)) for name in names}
            sizes = {name: file.size() for name, file in files.items()}

            def read(entry: Mapping[str, Any]) -> bytes:
                name, stop = entry["file"], entry["offset"] + entry["size"]
                if stop > sizes[name]:
                    raise UnreadableError(f"a record that ends at byte {stop:,} of {sizes[name]:,}")
                if entry["size"] > MOST_BYTES:
                    raise UnreadableError(f"a record of {entry['size']:,} bytes")
                with self.folder.explained(name):
                    return files[name].read_at(entry["size"], entry["offset"])

            yield from read_rows(index, read, ["label"] if len(self.categories) > 1 else [])


def open_source(uri: str, options: Options) -> Source:
    """LSUN at `uri`.

    Raises:
        UserError: no database of the category, or of any.
    """
    folder, name = locate(uri) if uri.rpartition("/")[2] == FILE else (open_folder(uri), FILE)
    if folder.exists(name):
        return _open_one(folder, options)
    found = []
    for category in [options.category] if options.category else CATEGORIES:
        places = [Found(f"{category}{suffix}/{FILE}", category, split) for split, suffix in SUFFIXES.items()]
        split = [place for place in places if folder.exists(place.name)]
        whole = Found(f"{category}/{FILE}", category, "")
        found += split or ([whole] if folder.exists(whole.name) else [])
    if not found:
        got = f"no database of {options.category}" if options.category else "no database of a category"
        raise UserError(uri, got, LAYOUTS, "unpack it there, or correct the path")
    return Lsun(folder, tuple(found), options.seed)


def _open_one(folder: Folder, options: Options) -> Source:
    """The database whose own folder was named."""
    base = folder.uri.rpartition("/")[2]
    split = next((split for split, suffix in SUFFIXES.items() if base.endswith(suffix)), "")
    category = base.removesuffix(SUFFIXES.get(split, ""))
    if options.category not in (None, category):
        raise UserError("category", options.category, f"{category}, which {folder.uri} is", "leave it out")
    return Lsun(folder, (Found(FILE, category, split),), options.seed)
