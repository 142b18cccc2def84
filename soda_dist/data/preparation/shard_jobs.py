"""What workers of an import do: list a part of the source, write a shard and its record, renumber keys."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from soda_dist.config.fields import Node
from soda_dist.data.shards import Shard, shard_schema, write_shard
from soda_dist.data.source import Part, Row, Source, check_image
from soda_dist.data.storage.folder import Folder
from soda_dist.parallel.pool import Shared

IMPORT = "_import"
RECORDS = f"{IMPORT}/shards"
READERS = 16


class Rejected(Node):
    """A source row that could not be read."""

    name: str
    reason: str


class Record(Node):
    """What a finished task left: its shard (none if every row was rejected), whose keys begin at `first_key`."""

    shard: Shard | None
    first_key: int
    rejected: tuple[Rejected, ...]


@dataclass(frozen=True)
class ShardJob:
    """Rows [start, stop) of a split's list, which become one shard."""

    split: str
    number: int
    start: int
    stop: int

    @property
    def path(self) -> str:
        return f"{self.split}/{self.number:05d}.parquet"

    @property
    def record(self) -> str:
        return f"{RECORDS}/{self.split}-{self.number:05d}.json"


State = tuple[Source, Folder]
"""What a worker holds: the source, and the folder that the shards go to."""


def index_part(state: State, part: Part) -> pa.Table:
    return state[0].index(part)


@dataclass(frozen=True)
class ShardTask:
    """A job with its rows of the split's list.

    A source may need much to find any row: `common`, the list's metadata, reaches each machine once.
    """

    job: ShardJob
    index: pa.Table
    common: Shared[dict[bytes, bytes] | None]
    per_group: int


def make_shard(state: State, order: ShardTask) -> int:
    """Write one shard and then its record; return the shard's bytes."""
    (source, folder), job = state, order.job
    rejected: list[Rejected] = []
    schema = shard_schema(source.contents.columns)

    def tables() -> Iterator[pa.Table]:
        key = job.start
        found = order.index.replace_schema_metadata(order.common.get())
        for rows in _grouped(source.rows(found), order.per_group, rejected):
            yield _table(rows, key, schema)
            key += len(rows)

    shard = write_shard(folder, job.path, tables(), schema)
    record = Record(shard=shard, first_key=job.start, rejected=tuple(rejected))
    folder.write_json(job.record, record.model_dump())
    return shard.bytes if shard else 0


def _grouped(rows: Iterator[Row], per_group: int, rejected: list[Rejected]) -> Iterator[list[Row]]:
    """Groups of good rows, all full but the last; the others are added to `rejected`."""
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
    return pa.table(
        [
            pa.array(
                common[field.name] if field.name in common else [row.columns[field.name] for row in rows], field.type
            )
            for field in schema
        ],
        schema=schema,
    )


def find_finished(folder: Folder, jobs: list[ShardJob]) -> dict[ShardJob, Record]:
    """The jobs whose record is there and whose shard is as long as the record says."""
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
    file = pq.ParquetFile(pa.BufferReader(folder.read(job.path)), page_checksum_verification=True)

    def tables() -> Iterator[pa.Table]:
        key = first_key
        for number in range(file.num_row_groups):
            table = file.read_row_group(number, use_threads=False)
            yield table.set_column(0, "key", pa.array(range(key, key + len(table)), pa.int64()))
            key += len(table)

    shard = write_shard(folder, job.path, tables(), file.schema_arrow.remove_metadata())
    folder.write_json(job.record, record.model_copy(update={"shard": shard, "first_key": first_key}).model_dump())
