"""Prepared data sets: Parquet shards and a manifest, written and read.

    manifest.json            written last: a folder without it is not a data set
    SPLIT/NNNNN.parquet      shards; row groups are the unit of reading
    rejected.jsonl           source rows that could not be read, if any

Columns: `key` int64, the row's number in its split, 0..N-1 in shard order; `image` binary, the encoded image as
published; `name` string, its origin; then the data set's own typed columns.
"""

import hashlib
import json
import re
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from itertools import accumulate
from typing import Annotated, Any, Final, Generic, Literal, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, ValidationError, model_validator

from soda_dist.config.fields import Node
from soda_dist.data.storage.folder import Folder
from soda_dist.data.storage.metadata import parse_json, read_limited
from soda_dist.errors import UserError

VERSION: Final = 2
MANIFEST = "manifest.json"
SHARD_FILE = re.compile(r"\w+/\d{5}\.parquet")
ATTRIBUTES = "attributes"
"""As a main label: all attribute columns."""
REMEDY = "rerun prepare_data to rebuild it"
CACHED_BYTES = 256 * 2**20
OPEN_SHARDS = 64
PAGES = b"soda_dist.pages"
"""Metadata key in a shard's footer: digest of its pages."""
READERS = 16
"""Concurrent shard reads for a whole column: object-store requests are bound by latency."""
COMMON_COLUMNS = (("key", pa.int64()), ("image", pa.binary()), ("name", pa.string()))

Rows = Annotated[int, Field(ge=0, lt=2**48)]
SplitName = Annotated[str, Field(pattern=r"^[^/\\\x00-\x1f\x7f]+$", max_length=200)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Value = TypeVar("Value")


class Label(Node):
    """A column to predict, with the names of its values 0..n-1."""

    kind: Literal["class", "factor", "attribute"]
    names: tuple[str, ...]


class Shard(Node):
    """One Parquet file; `groups` counts the rows of each row group."""

    path: str
    rows: Rows
    bytes: Rows
    sha256: Sha256
    pages: Sha256
    """SHA-256 of the file without its footer, which holds a copy: a reader of single row groups can so detect a
    replaced file."""
    groups: tuple[Rows, ...]


class Reencoding(Node):
    """JPEG settings with which an import re-encoded every image."""

    max_side: Annotated[int, Field(ge=1)] | None
    """Maximum longer side in pixels; None = as published."""
    quality: Annotated[int, Field(ge=1, le=100)]
    """JPEG quality."""

    def __str__(self) -> str:
        size = "" if self.max_side is None else f" of at most {self.max_side} px a side"
        return f"images re-encoded as JPEG{size}, quality {self.quality}"


class Split(Node):
    """Shards in key order. Row groups are full, except the last of a split or of a shard with rejected rows."""

    rows: Rows
    shards: tuple[Shard, ...]

    @property
    def groups(self) -> tuple[int, ...]:
        """Number of rows of each row group."""
        return tuple(rows for shard in self.shards for rows in shard.groups)


class Manifest(Node):
    """Contents of a prepared data set."""

    version: Literal[2]
    kind: str
    source: str
    fingerprint: str
    """Hash of format version, kind, source and options; equal for the same import."""
    splits: dict[SplitName, Split]
    labels: dict[str, Label]
    main_label: str | None
    rejected: Rows
    reencoded: Reencoding | None = None
    """None = images are as published."""
    parent: str | None = None
    """Digest of the data that this was made from by adding or removing rows; None = an import."""
    removed: tuple[str, ...] = ()
    """SHA-256 of the names of removed rows: adding files skips them."""

    @property
    def digest(self) -> str:
        """SHA-256 of the contents: the shards of each split in order, and the labels."""
        shards = {name: [shard.sha256 for shard in split.shards] for name, split in self.splits.items()}
        labels = {name: label.model_dump() for name, label in self.labels.items()}
        contents = json.dumps([self.version, shards, labels, self.main_label], sort_keys=True)
        return hashlib.sha256(contents.encode()).hexdigest()

    @model_validator(mode="after")
    def _consistent(self) -> "Manifest":
        """Counts agree with each other, shards lie in their split's folder, each once, and labels exist."""
        paths = [shard.path for split in self.splits.values() for shard in split.shards]
        if len(set(paths)) < len(paths):
            raise ValueError("a shard is listed twice")
        for name, split in self.splits.items():
            if name in (".", ".."):
                raise ValueError(f"{name} is no name of a split")
            if split.rows != sum(split.groups):
                raise ValueError(f"{name} has {split.rows} rows, its shards {sum(split.groups)}")
            for shard in split.shards:
                if shard.path.rpartition("/")[0] != name or shard.path.endswith(("/.", "/..")):
                    raise ValueError(f"{shard.path} is not in the folder {name}")
                if not sum(shard.groups) == shard.rows <= shard.bytes:
                    raise ValueError(f"{shard.path} has {shard.rows} rows in {shard.bytes} bytes")
        attributes = any(label.kind == "attribute" for label in self.labels.values())
        if self.main_label not in (None, *self.labels, *([ATTRIBUTES] if attributes else [])):
            raise ValueError(f"{self.main_label} is no label")
        return self

    def split(self, name: str) -> Split:
        """Return the split `name`; a `UserError` if it does not exist."""
        if name not in self.splits:
            raise UserError("split", name, ", ".join(sorted(self.splits)), "choose an existing split")
        return self.splits[name]


def read_manifest(folder: Folder) -> Manifest:
    """Read the manifest of a prepared data set.

    Raises:
        UserError: no manifest, not JSON, another version, or missing or invalid fields.
    """
    uri = folder.file_uri(MANIFEST)
    try:
        content = read_limited(folder, MANIFEST)
    except FileNotFoundError:
        got = "a folder without manifest.json"
        raise UserError(folder.uri, got, "a prepared data set", "run prepare_data until it finishes") from None
    tree = parse_json(content, uri)
    version = tree.get("version") if isinstance(tree, dict) else None
    if version != VERSION:
        raise UserError(uri, f"version {version}", f"version {VERSION}", "prepare the data into an empty folder")
    digest = tree.pop("digest", None)  # manifests of earlier releases have none
    try:
        manifest = Manifest.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])[:100]
        got = f"an invalid field {place}" if place else problem["msg"].removeprefix("Value error, ")[:300]
        raise UserError(uri, got, "an unmodified manifest", "prepare the data again") from None
    if digest not in (None, manifest.digest):
        raise UserError(uri, "contents that differ from its digest", "an unmodified manifest", "restore the file")
    return manifest


def write_manifest(folder: Folder, manifest: Manifest) -> None:
    """Write the manifest with its digest, which makes the folder a data set; the shards must be complete."""
    folder.write_json(MANIFEST, {"digest": manifest.digest, **manifest.model_dump(mode="json")})


def check_shards(folder: Folder, manifest: Manifest, split: str) -> None:
    """Check that each shard of the split exists with its original size; a `UserError` otherwise."""
    sizes = {entry.name: entry.size for entry in folder.list(f"{split}/")}
    for shard in manifest.split(split).shards:
        if shard.path not in sizes:
            raise UserError(folder.file_uri(shard.path), "a missing shard", "all shards of the manifest", REMEDY)
        if sizes[shard.path] != shard.bytes:
            got = f"a shard of {sizes[shard.path]} bytes"
            raise UserError(folder.file_uri(shard.path), got, f"{shard.bytes} bytes, as in the manifest", REMEDY)


def unlisted_shards(folder: Folder, manifest: Manifest) -> list[str]:
    """List the shards that the manifest lacks: an interrupted change of the data left them."""
    listed = {shard.path for split in manifest.splits.values() for shard in split.shards}
    return [entry.name for entry in folder.list() if SHARD_FILE.fullmatch(entry.name) and entry.name not in listed]


def shard_schema(columns: Iterable[pa.Field]) -> pa.Schema:
    """Return the schema of shards with these additional columns."""
    return pa.schema([*COMMON_COLUMNS, *columns])


def write_shard(folder: Folder, path: str, groups: Iterable[pa.Table], schema: pa.Schema) -> Shard | None:
    """Write a Parquet file with page checksums and a row group per table; without tables, write none and return None.

    Images, which are compressed already, get no codec, dictionary or statistics.
    """
    sink, rows = _HashingBuffer(), []
    with pq.ParquetWriter(
        sink,
        schema,
        use_dictionary=False,
        compression={"name": "zstd"},
        write_statistics=["key"],
        write_page_checksum=True,
    ) as writer:
        for group in groups:
            writer.write_table(group, row_group_size=max(1, len(group)))
            rows.append(len(group))
        pages = sink.digest.hexdigest()
        writer.add_key_value_metadata({PAGES.decode(): pages})
    if not rows:
        return None
    folder.write(path, sink.getbuffer())
    size, digest = sink.getbuffer().nbytes, sink.digest.hexdigest()
    return Shard(path=path, rows=sum(rows), bytes=size, sha256=digest, pages=pages, groups=tuple(rows))


class _HashingBuffer(BytesIO):
    """Buffer that hashes what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return super().write(data)


@dataclass(frozen=True, eq=False)
class ShardReader:
    """Reader of a split's row groups. Picklable; its caches belong to the process."""

    folder: Folder
    manifest: Manifest
    split: str

    @property
    def groups(self) -> tuple[int, ...]:
        """Number of rows of each row group."""
        return self.manifest.split(self.split).groups

    @property
    def fits_in_cache(self) -> bool:
        """Whether the cache of a process can hold the whole split."""
        return sum(shard.bytes for shard in self._shards) <= CACHED_BYTES

    def group(self, number: int, columns: Sequence[str]) -> pa.Table:
        """Read these columns of row group `number`. Thread-safe.

        Raises:
            UserError: the shard is missing, truncated or altered, or has no such column.
            IndexError: the row group does not exist.
        """
        if not 0 <= number < self._ends[-1]:
            raise IndexError(f"row group {number} of {self._ends[-1]}")
        at = bisect_right(self._ends, number)
        shard = self._shards[at]
        inner = number - (self._ends[at] - len(shard.groups))
        key = (self.folder.uri, shard.path, shard.sha256, inner, tuple(columns))
        return _GROUPS.get(key, lambda: self._read(shard, inner, columns))

    def column(self, name: str) -> pa.ChunkedArray:
        """Read one column of the whole split, in row order, uncached. Raises as `group` does."""
        with ThreadPoolExecutor(READERS) as pool:
            parts = [*pool.map(lambda shard: self._read(shard, None, [name]).column(0), self._shards)]
        return pa.chunked_array([chunk for part in parts for chunk in part.chunks], parts[0].type if parts else None)

    def schema(self) -> pa.Schema:
        """Return the schema of the first shard; empty without shards."""
        return self._open_shard(self._shards[0]).metadata.schema.to_arrow_schema() if self._shards else pa.schema([])

    @cached_property
    def _shards(self) -> tuple[Shard, ...]:
        return self.manifest.split(self.split).shards

    @cached_property
    def _ends(self) -> list[int]:
        return [*accumulate(len(shard.groups) for shard in self._shards)] or [0]

    def _read(self, shard: Shard, group: int | None, columns: Sequence[str]) -> pa.Table:
        opened = self._open_shard(shard)
        have = opened.metadata.schema.to_arrow_schema().names
        unknown = [name for name in columns if name not in have]
        if unknown:
            raise UserError("column", ", ".join(unknown), ", ".join(have), "choose from the data set's columns")
        with self._translated_errors(shard):
            return self.folder.retry(shard.path, lambda: opened.read(group, columns))

    def _open_shard(self, shard: Shard) -> "_OpenShard":
        with self._translated_errors(shard):
            return _SHARDS.get((self.folder.uri, shard.path, shard.sha256), lambda: self._open_file(shard))

    @contextmanager
    def _translated_errors(self, shard: Shard) -> Iterator[None]:
        uri = self.folder.file_uri(shard.path)
        try:
            yield
        except FileNotFoundError:
            raise UserError(uri, "a missing shard", "all shards of the manifest", REMEDY) from None
        except (pa.ArrowException, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
            remedy = f"remove it, then {REMEDY}"
            raise UserError(uri, f"an altered shard ({reason})", "the shard as written", remedy) from None

    def _open_file(self, shard: Shard) -> "_OpenShard":
        file = self.folder.open(shard.path)
        metadata = self.folder.retry(shard.path, lambda: pq.ParquetFile(file).metadata)
        have = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
        if have != shard.groups:
            raise pa.ArrowInvalid("row groups differ from the manifest")
        if (metadata.metadata or {}).get(PAGES) != shard.pages.encode():
            raise pa.ArrowInvalid("content differs from the manifest")
        return _OpenShard(file, metadata)


@dataclass(frozen=True)
class _OpenShard:
    """An open Parquet file and its footer."""

    file: pa.NativeFile
    metadata: pq.FileMetaData

    def read(self, group: int | None, columns: Sequence[str]) -> pa.Table:
        """Read one row group; None = all."""
        # pre_buffer: one request for all columns. A reader retains what it prefetched, so each call makes its own.
        reader = pq.ParquetFile(self.file, metadata=self.metadata, pre_buffer=True, page_checksum_verification=True)
        groups = range(self.metadata.num_row_groups) if group is None else [group]
        return reader.read_row_groups(groups, columns=list(columns), use_threads=False)


class _Cache(Generic[Value]):
    """Least-recently-used cache; two threads may compute the same value at once."""

    def __init__(self, limit: int, size: Callable[[Value], int]) -> None:
        self._limit, self._size, self._held = limit, size, 0
        self._values: OrderedDict[tuple, Value] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple, make: Callable[[], Value]) -> Value:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        with self._lock:
            if key not in self._values:
                self._values[key] = value
                self._held += self._size(value)
            while self._held > self._limit and len(self._values) > 1:
                self._held -= self._size(self._values.popitem(last=False)[1])
        return value


_GROUPS: _Cache[pa.Table] = _Cache(CACHED_BYTES, lambda table: table.nbytes)
_SHARDS: _Cache[_OpenShard] = _Cache(OPEN_SHARDS, lambda shard: 1)
