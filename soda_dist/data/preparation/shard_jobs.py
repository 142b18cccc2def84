"""Import tasks that run on workers: list a part, write a shard and its record, renumber keys."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from soda_dist.config.fields import Node
from soda_dist.data.shards import Shard, shard_schema, write_shard
from soda_dist.data.source import Part, Row, Source, check_image
from soda_dist.data.storage.folder import Folder
from soda_dist.parallel.pool import Shared

IMPORT = "_import"
READERS = 16


class Rejected(Node):
    """A source row that could not be read."""

    name: str
    reason: str


class Record(Node):
    """Result of a finished task: its shard (None if all rows were rejected), whose keys start at `first_key`."""

    shard: Shard | None
    first_key: int
    rejected: tuple[Rejected, ...]


@dataclass(frozen=True)
class ShardJob:
    """Rows [start, stop) of a split's list, to become one shard.

    Attributes:
        staging: folder of the list and the records.
        before: rows of the split before the list's first.
    """

    split: str
    number: int
    start: int
    stop: int
    staging: str = IMPORT
    before: int = 0

    @property
    def path(self) -> str:
        return f"{self.split}/{self.number:05d}.parquet"

    @property
    def record(self) -> str:
        return f"{self.staging}/shards/{self.split}-{self.number:05d}.json"

    @property
    def first_key(self) -> int:
        """Key of its first row, if no row before it is rejected."""
        return self.before + self.start


State = tuple[Source, Any]
"""State of a worker: the source, and the folder of the shards."""


def index_part(state: State, part: Part) -> pa.Table:
    return state[0].index(part)


@dataclass(frozen=True)
class ShardTask:
    """A job and its rows; `common`, the metadata of the split's list, may be large and is sent once per machine."""

    job: ShardJob
    index: pa.Table
    common: Shared[dict[bytes, bytes] | None]
    per_group: int


def make_shard(state: State, task: ShardTask) -> int:
    """Write one shard and then its record; return the shard's bytes."""
    (source, folder), job = state, task.job
    rejected: list[Rejected] = []
    schema = shard_schema(source.contents.columns)

    def tables() -> Iterator[pa.Table]:
        key = job.first_key
        found = task.index.replace_schema_metadata(task.common.get())
        for rows in _grouped(source.rows(found), task.per_group, rejected):
            yield _table(rows, key, schema)
            key += len(rows)

    shard = write_shard(folder, job.path, tables(), schema)
    record = Record(shard=shard, first_key=job.first_key, rejected=tuple(rejected))
    folder.write_json(job.record, record.model_dump())
    return shard.bytes if shard else 0


def _grouped(rows: Iterator[Row], per_group: int, rejected: list[Rejected]) -> Iterator[list[Row]]:
    """Yield groups of valid rows, all full but the last; append invalid rows to `rejected`."""
    group: list[Row] = []
    for row in rows:
        reason = row.problem or check_image(row.image)
        if reason:
            rejected.append(Rejected(name=row.name, reason=reason))
            continue
        group.append(row)
        if len(group) == per_group:
            yield group
            group = []
    if group:
        yield group


def _table(rows: list[Row], first_key: int, schema: pa.Schema) -> pa.Table:
    common: dict[str, Any] = {
        "key": range(first_key, first_key + len(rows)),
        "image": [row.image for row in rows],
        "name": [row.name for row in rows],
    }
    columns = {name: [row.columns[name] for row in rows] for name in schema.names if name not in common} | common
    return pa.table([pa.array(columns[field.name], field.type) for field in schema], schema=schema)


def find_finished(folder: Folder, jobs: list[ShardJob]) -> dict[ShardJob, Record]:
    """Find jobs with a record whose shard exists in its recorded size."""
    sizes = {entry.name: entry.size for entry in folder.list()}
    with ThreadPoolExecutor(READERS) as pool:
        found = [job for job in jobs if job.record in sizes]
        records = pool.map(lambda job: Record.model_validate_json(folder.read(job.record)), found)
        return {
            job: record
            for job, record in zip(found, records, strict=True)
            if record.shard is None or sizes.get(record.shard.path) == record.shard.bytes
        }


def rewrite_keys(state: State, call: tuple[ShardJob, Record, int]) -> None:
    (_, folder), (job, record, first_key) = state, call
    shard = rewrite_shard(folder, folder.read(job.path), job.path, first_key)
    folder.write_json(job.record, record.model_copy(update={"shard": shard, "first_key": first_key}).model_dump())


def rewrite_shard(folder: Folder, data: bytes, path: str, first_key: int, dropped: Sequence[int] = ()) -> Shard | None:
    """Write a shard's content to `path` without the rows `dropped`, with keys from `first_key` on.

    Returns:
        The new shard; None, and nothing written, if no row is left.
    """
    file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)

    def tables() -> Iterator[pa.Table]:
        key, row = first_key, 0
        for number in range(file.num_row_groups):
            table = file.read_row_group(number, use_threads=False)
            kept = np.setdiff1d(np.arange(row, row + len(table)), dropped) - row
            row += len(table)
            if not len(kept):
                continue
            table = table if len(kept) == len(table) else table.take(pa.array(kept))
            yield table.set_column(0, "key", pa.array(range(key, key + len(table)), pa.int64()))
            key += len(table)

    return write_shard(folder, path, tables(), file.schema_arrow.remove_metadata())
