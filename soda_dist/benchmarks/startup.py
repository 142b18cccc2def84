"""`benchmark.py import` and `start`: conversion of images to shards, and time to the first batch.

Import is compared with reading and hashing the same files, and with also writing their bytes to the temporary folder.
Local files are first copied there, so they come from the page cache, with one thread per core; files of an object store
are read in place, with as many threads as imports on all CPUs of the cluster would use.
"""

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count, cycle
from pathlib import Path

import ray

from soda_dist.benchmarks.harness import Result, Side, alternate, ratio
from soda_dist.config.load import load_config
from soda_dist.config.schema import RunConfig
from soda_dist.data.preparation import prepare
from soda_dist.data.shards import check_shards, read_manifest
from soda_dist.data.source import READERS
from soda_dist.data.storage.folder import Entry, Folder, open_folder
from soda_dist.distributed.ingest import stream
from soda_dist.distributed.runtime.actor_pool import ActorPool
from soda_dist.errors import UserError
from soda_dist.parallel.progress import Say, silent

BYTES = 10**9
"""Bytes to import: a local source is repeated or cut to it; for an object store, the maximum."""
PIECE = 64 * 2**20
"""Bytes of a file that is written and synced to disk like a shard."""
IMPORT, READING, WRITING = "import", "reading and hashing", "reading, hashing and writing"
IMPORT_LIMIT = 0.7
MOST_SECONDS = 10.0
"""Longest acceptable time to the first batch."""
IMAGES = (".jpg", ".jpeg", ".png", ".webp")


def measure_import(source_uri: str, say: Say) -> list[Result]:
    """Compare MB/s of an import from files to shards with reading, hashing and writing.

    Args:
        source_uri: a folder with images, also in subfolders, and no other files, which an import would inspect.

    Raises:
        UserError: a folder without images, or more than `BYTES` in an object store.
    """
    with tempfile.TemporaryDirectory() as place:
        scratch, source = Path(place), open_folder(source_uri)
        if source.is_local:
            source = _copy(source, scratch / "source")
        files = _images(source)
        size = sum(file.size for file in files) / 1e6
        if not source.is_local and size > BYTES / 1e6:
            raise UserError(source.uri, f"{size:,.0f} MB", f"at most {BYTES / 1e6:,.0f} MB", "choose a subfolder")
        read = partial(_read_seconds, source, [file.name for file in files])
        sides: dict[str, Side] = {
            IMPORT: lambda number: size / _import_seconds(source.uri, scratch / f"data {number}"),
            READING: lambda _: size / read(None),
            WRITING: lambda _: size / read(scratch / "written"),
        }
        rates = alternate(f"import, {len(files):,} images, {size:,.0f} MB", sides, "MB/s", say)
    return [
        ratio(f"import against {other}", {side: rates[side] for side in (IMPORT, other)}, "MB/s", limit)
        for other, limit in ((READING, IMPORT_LIMIT), (WRITING, None))
    ]


def measure_start(preset: str, data_uri: str, overrides: Sequence[str], say: Say) -> list[Result]:
    """Compare the time to the first batch with `MOST_SECONDS`, for a start and for a resume in mid-epoch.

    The slowest round counts, since later rounds find warm processes and caches.

    Raises:
        UserError: no shards, or an invalid configuration.
    """
    config = load_config(preset, ["scale.workers=1", *overrides])
    split = read_manifest(open_folder(data_uri)).split(config.data.train_split)
    middle = min(max(1, split.rows // config.train.global_batch // 2), config.train.steps - 1)
    starts = {"a start": 0, "a resume in mid-epoch": middle}
    name = f"first batch, {len(split.shards):,} shards"
    sides: dict[str, Side] = {
        start: partial(lambda step, _: 1 / first_batch(data_uri, config, step), step) for start, step in starts.items()
    }
    rates = alternate(name, sides, "1/s", say)
    allowed = f"{MOST_SECONDS:g} s"
    results = []
    for start in starts:
        slowest = min(rates[start])
        both = {start: [slowest], allowed: [1 / MOST_SECONDS]}
        results.append(ratio(f"{name}, {start}, against {allowed}", both, "1/s", 1.0, {"seconds": 1 / slowest}))
    return results


def first_batch(uri: str, config: RunConfig, step: int) -> float:
    """Measure seconds from opening the data to the batch of a step, with Ray running."""
    begun = time.perf_counter()
    check_shards(open_folder(uri), read_manifest(open_folder(uri)), config.data.train_split)
    batches = stream(uri, config, 0, step)
    next(batches)
    waited = time.perf_counter() - begun
    batches.close()
    return waited


def _images(source: Folder) -> list[Entry]:
    found = [entry for entry in source.list() if entry.size and entry.name.lower().endswith(IMAGES)]
    if not found:
        raise UserError(source.uri, "no images", f"files in {', '.join(IMAGES)}", "choose another folder")
    return found


def _copy(source: Folder, into: Path) -> Folder:
    """Copy `BYTES` of the source's images to another folder, repeating them if it has fewer."""
    entries, size = _images(source), 0
    for number, entry in enumerate(cycle(entries)):
        file = into / f"{number // len(entries)}" / entry.name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(source.read(entry.name))
        size += entry.size
        if size >= BYTES:
            break
    return open_folder(str(into))


def _import_seconds(source_uri: str, data: Path) -> float:
    """Measure seconds of an import into an empty folder."""
    start = time.perf_counter()
    prepare("folder", source_uri, str(data), ["splits=drawn", "classes=false"], ActorPool(say=silent))
    seconds = time.perf_counter() - start
    shutil.rmtree(data)
    return seconds


def _read_seconds(source: Folder, names: Sequence[str], into: Path | None) -> float:
    """Measure seconds of reading and hashing files and, if a folder is given, of writing their bytes."""
    if into:
        into.mkdir()
    cores = os.cpu_count() or 1
    threads = cores if source.is_local else int(ray.cluster_resources()["CPU"]) * READERS
    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        shares = [names[thread::threads] for thread in range(threads)]
        list(pool.map(partial(_read, source, into), range(threads), shares))
    seconds = time.perf_counter() - start
    if into:
        shutil.rmtree(into)
    return seconds


def _read(source: Folder, into: Path | None, number: int, names: Sequence[str]) -> None:
    rest = iter(names)
    for piece in count():
        size, read = 0, list[bytes]()
        for name in rest:
            read.append(source.read(name))
            hashlib.sha256(read[-1]).digest()
            size += len(read[-1])
            if size >= PIECE:
                break
        if not read:
            return
        if into:
            with (into / f"{number} {piece}").open("wb") as out:
                out.writelines(read)
                out.flush()
                os.fsync(out.fileno())
