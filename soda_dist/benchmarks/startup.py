"""`benchmark.py import` and `start`: what comes before training: making shards, and the wait for the first batch.

An import of images is measured against reading and hashing the same files, and against writing their bytes as well, to
the folder of temporary files. Those of a local folder are copied there first, and so come from the page cache, to as
many threads as there are cores; those of an object store are read from there, by as many threads as imports on all CPUs
of the cluster would use.
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
"""Of images that are imported: those of a local source, over again or in part; at most, those of a store."""
PIECE = 64 * 2**20
"""Bytes of a file that is written and flushed to the disk, as a shard is."""
IMPORT, READING, WRITING = "import", "reading and hashing", "reading, hashing and writing"
IMPORT_LIMIT = 0.7
MOST_SECONDS = 10.0
"""Until the first batch."""
IMAGES = (".jpg", ".jpeg", ".png", ".webp")


def measure_import(source_uri: str, say: Say) -> list[Result]:
    """Bytes of images a second, from files in folders to shards.

    Args:
        source_uri: a folder with images in it or below, and nothing else: a store's other files would be looked at.

    Raises:
        UserError: a folder without images, or one in a store with too many.
    """
    with tempfile.TemporaryDirectory() as place:
        scratch, source = Path(place), open_folder(source_uri)
        if source.is_local:
            source = _copied(source, scratch / "source")
        files = _images(source)
        size = sum(file.size for file in files) / 1e6
        if not source.is_local and size > BYTES / 1e6:
            raise UserError(source.uri, f"{size:,.0f} MB", f"at most {BYTES / 1e6:,.0f}", "name a folder in it")
        read = partial(_seconds, source, [file.name for file in files])
        sides: dict[str, Side] = {
            IMPORT: lambda number: size / _imported(source.uri, scratch / f"data {number}"),
            READING: lambda _: size / read(None),
            WRITING: lambda _: size / read(scratch / "written"),
        }
        rates = alternate(f"import, {len(files):,} images, {size:,.0f} MB", sides, "MB/s", say)
    return [
        ratio(f"import against {other}", {side: rates[side] for side in (IMPORT, other)}, "MB/s", limit)
        for other, limit in ((READING, IMPORT_LIMIT), (WRITING, None))
    ]


def measure_start(preset: str, data_uri: str, overrides: Sequence[str], say: Say) -> list[Result]:
    """How often a first batch would fit into the seconds that it may take: of a start, and of a resume in mid-epoch.

    The slowest round counts: later ones find processes that have run, and what they keep.

    Raises:
        UserError: no shards, or what `load_config` refuses.
    """
    config = load_config(preset, ["scale.workers=1", *overrides])
    split = read_manifest(open_folder(data_uri)).split(config.data.train_split)
    middle = min(max(1, split.rows // config.train.global_batch // 2), config.train.steps - 1)
    starts = {"a start": 0, "a resume in mid-epoch": middle}
    name = f"first batch, {len(split.shards):,} shards"
    sides: dict[str, Side] = {
        how: partial(lambda step, _: 1 / first_batch(data_uri, config, step), step) for how, step in starts.items()
    }
    rates = alternate(name, sides, "1/s", say)
    allowed = f"{MOST_SECONDS:g} s"
    return [
        ratio(
            f"{name}, {how}, against {allowed}",
            {how: [min(rates[how])], allowed: [1 / MOST_SECONDS]},
            "1/s",
            1.0,
            {"seconds": 1 / min(rates[how])},
        )
        for how in starts
    ]


def first_batch(uri: str, config: RunConfig, step: int) -> float:
    """Seconds from nothing but a URI to the batch of a step, with Ray running."""
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
        raise UserError(source.uri, "no images", f"files in {', '.join(IMAGES)}", "name another folder")
    return found


def _copied(source: Folder, into: Path) -> Folder:
    """BYTES of the source's images, as files of another folder."""
    entries, size = _images(source), 0
    for number, entry in enumerate(cycle(entries)):
        file = into / f"{number // len(entries)}" / entry.name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(source.read(entry.name))
        size += entry.size
        if size >= BYTES:
            break
    return open_folder(str(into))


def _imported(source_uri: str, data: Path) -> float:
    """Seconds of an import into an empty folder."""
    start = time.perf_counter()
    prepare("folder", source_uri, str(data), ["splits=drawn", "classes=false"], ActorPool(say=silent))
    seconds = time.perf_counter() - start
    shutil.rmtree(data)
    return seconds


def _seconds(source: Folder, names: Sequence[str], into: Path | None) -> float:
    """Of reading and hashing files, and of writing their bytes if a folder is given."""
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
