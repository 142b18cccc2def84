"""`prepare_data.py --check`: check a prepared folder against its manifest, shard by shard, over a pool.

Checks each shard's size and digest, page checksums, rows per group, consecutive keys, and that images can be decoded.
"""

import hashlib
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from soda_dist.data.shards import MANIFEST, Shard, read_manifest, unlisted_shards
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.data.views.decode import decode, read_header
from soda_dist.errors import UserError
from soda_dist.parallel.local_pool import LocalPool
from soda_dist.parallel.pool import Pool
from soda_dist.parallel.progress import Progress, Say, silent

MAX_SHOWN = 20
"""Maximum number of problems that are logged in full."""


class ShardReport(NamedTuple):
    """Result for one shard."""

    decoded: int
    problems: list[str]


def check(data_uri: str, images: int | None, pool: Pool | None = None, say: Say = silent) -> str:
    """Check every shard of a prepared folder and return the folder's URI; writes nothing.

    Args:
        images: number of evenly spaced images to decode per shard; None = all.
        pool: workers; None = this process.

    Raises:
        UserError: no manifest, or problems in shards, which are logged first.
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
    found.append(
        ShardReport(0, [f"{folder.file_uri(name)}: not in the manifest" for name in unlisted_shards(folder, manifest)])
    )
    rows = ", ".join(f"{split.rows:,} {name} rows" for name, split in manifest.splits.items())
    decoded = sum(checked.decoded for checked in found)
    problems = [text for checked in found for text in checked.problems]
    for text in problems[:MAX_SHOWN]:
        say(text)
    if problems:
        more = f" (first {MAX_SHOWN} shown)" if len(problems) > MAX_SHOWN else ""
        got = f"{len(problems):,} {'problem' if len(problems) == 1 else 'problems'} in {len(calls):,} shards{more}"
        remedy = "remove the shards named above and rerun the import, which keeps the others"
        raise UserError(folder.file_uri(MANIFEST), got, "shards as written", remedy)
    say(f"ok: {len(calls):,} shards, {rows}, {decoded:,} images decoded")
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
        return ShardReport(0, [f"{uri}: content differs from the manifest"])
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        groups = [file.read_row_group(number, ["key", "image", "name"]) for number in range(file.num_row_groups)]
    except (pa.ArrowException, OSError) as error:
        return ShardReport(0, [f"{uri}: incomplete Parquet ({str(error).splitlines()[0]})"])
    counts = tuple(len(group) for group in groups)
    problems = [] if counts == shard.groups else [f"{uri}: row groups of {counts} rows, not {shard.groups}"]
    table = pa.concat_tables(groups)
    if table.column("key").to_pylist() != list(range(first_key, first_key + len(table))):
        problems.append(f"{uri}: keys other than {first_key}..{first_key + len(table) - 1}")
    chosen = np.arange(len(table))
    if images is not None:
        chosen = np.unique(np.linspace(0, len(table) - 1, images).round().astype(int))
    return ShardReport(len(chosen), [*problems, *_unreadable(uri, table.take(chosen))])


def _unreadable(uri: str, rows: pa.Table) -> Iterator[str]:
    for row in rows.select(["image", "name"]).to_pylist():
        header = read_header(row["image"])
        if header is None or decode(row["image"], header, 1) is None:
            yield f"{uri}: {row['name']} cannot be decoded"
