"""`prepare_data.py --check`: a prepared folder against its manifest, over a pool, a shard each.

Of a shard: its bytes and digest, the checksums of its pages, the rows of its groups, keys that count on without a gap,
and images that can be decoded.
"""

import hashlib
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from soda_dist.data.shards import MANIFEST, Shard, read_manifest
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.data.views.decode import decode, read_header
from soda_dist.errors import UserError
from soda_dist.parallel.local_pool import LocalPool
from soda_dist.parallel.pool import Pool
from soda_dist.parallel.progress import Progress, Say, silent

SHOWN = 20
"""Complaints that are said in full; the others are counted."""


class ShardReport(NamedTuple):
    """What a task found."""

    decoded: int
    complaints: list[str]


def check(data_uri: str, images: int | None, pool: Pool | None = None, say: Say = silent) -> str:
    """Check every shard of a prepared folder, whose URI it returns. Writes nothing.

    Args:
        images: of each shard, spread evenly, that are decoded; None = all.
        pool: where the work is done; None = in this process.

    Raises:
        UserError: no manifest, or a complaint about a shard; all of them were said before.
    """
    folder = open_folder(data_uri)
    manifest = read_manifest(folder)
    calls, first = [], 0
    for split in manifest.splits.values():
        first = 0
        for shard in split.shards:
            calls.append((shard, first))
            first += shard.rows
    progress = Progress(say, "checking", "shards", size=lambda call, checked: call[0].bytes)
    with pool or LocalPool() as workers:
        found = workers.map(partial(_check_shard, folder, images), calls, progress)
    rows = ", ".join(f"{split.rows:,} {name} rows" for name, split in manifest.splits.items())
    decoded = sum(checked.decoded for checked in found)
    said = [text for checked in found for text in checked.complaints]
    for text in said[:SHOWN]:
        say(text)
    if said:
        more = f", of which {SHOWN} are shown" if len(said) > SHOWN else ""
        raise UserError(
            folder.file_uri(MANIFEST),
            f"{len(said):,} {'complaint' if len(said) == 1 else 'complaints'} about {len(calls):,} shards{more}",
            "shards as they were written",
            "remove the shards named above and run the command that made them again; it keeps the others",
        )
    say(f"sound: {len(calls):,} shards, {rows}, {decoded:,} images decoded")
    return folder.uri


def _check_shard(folder: Folder, images: int | None, state: None, call: tuple[Shard, int]) -> ShardReport:
    shard, first_key = call
    uri = folder.file_uri(shard.path)
    try:
        data = folder.read(shard.path)
    except FileNotFoundError:
        return ShardReport(0, [f"{uri}: missing"])
    if len(data) != shard.bytes:
        return ShardReport(0, [f"{uri}: {len(data):,} bytes, not {shard.bytes:,}"])
    if hashlib.sha256(data).hexdigest() != shard.sha256:
        return ShardReport(0, [f"{uri}: other content than was written"])
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        groups = [file.read_row_group(number, ["key", "image", "name"]) for number in range(file.num_row_groups)]
    except (pa.ArrowException, OSError) as error:
        return ShardReport(0, [f"{uri}: not whole Parquet ({str(error).splitlines()[0]})"])
    counts = tuple(len(group) for group in groups)
    complaints = [] if counts == shard.groups else [f"{uri}: row groups of {counts} rows, not {shard.groups}"]
    table = pa.concat_tables(groups)
    if table.column("key").to_pylist() != list(range(first_key, first_key + len(table))):
        complaints.append(f"{uri}: keys other than {first_key}..{first_key + len(table) - 1}")
    chosen = np.unique(np.linspace(0, len(table) - 1, images or 0).round().astype(int)) if images is not None else None
    chosen = np.arange(len(table)) if chosen is None else chosen
    return ShardReport(len(chosen), [*complaints, *_unreadable(uri, table.take(chosen))])


def _unreadable(uri: str, rows: pa.Table) -> Iterator[str]:
    for row in rows.select(["image", "name"]).to_pylist():
        header = read_header(row["image"])
        if header is None or decode(row["image"], header, 1) is None:
            yield f"{uri}: {row['name']} cannot be decoded"
