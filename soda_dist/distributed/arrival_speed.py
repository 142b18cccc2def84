"""`benchmark.py import` and `start`: what comes before training: making shards, and the wait for the first batch.

An import of images is measured against reading and hashing the same files, and against writing their bytes as well, on
as many threads as there are cores. The files were just written to the local disk, so they come from the page cache.
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

from soda_dist.config.load import load_config
from soda_dist.config.schema import RunConfig
from soda_dist.data.shards import check_shards, read_manifest
from soda_dist.data.storage import open_folder
from soda_dist.distributed.ingest import stream
from soda_dist.distributed.prepare import prepare
from soda_dist.distributed.rounds import Result, Side, alternate, ratio
from soda_dist.distributed.session import Say
from soda_dist.errors import UserError

BYTES = 400 * 10**6
"""Of images that are imported: those of the source, over again or in part."""
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
        source_uri: a folder with images in it or below.

    Raises:
        UserError: a folder without images.
    """
    with tempfile.TemporaryDirectory() as scratch:
        files = _images(source_uri, Path(scratch, "source"))
        size = sum(file.stat().st_size for file in files) / 1e6
        sides: dict[str, Side] = {
            IMPORT: lambda number: size / _imported(Path(scratch), number),
            READING: lambda _: size / _seconds(files, None),
            WRITING: lambda _: size / _seconds(files, Path(scratch, "written")),
        }
        rates = alternate(f"import, {len(files):,} images, {size:,.0f} MB", sides, "MB/s", say)
    return [
        ratio(f"import against {other}", {side: rates[side] for side in (IMPORT, other)}, "MB/s", limit)
        for other, limit in ((READING, IMPORT_LIMIT), (WRITING, None))
    ]


def measure_start(preset: str, data_uri: str, overrides: Sequence[str], say: Say) -> list[Result]:
    """How often a first batch would fit into the seconds that it may take: of a start, and of a resume in mid-epoch.

    Raises:
        UserError: no shards, or what `load_config` refuses.
    """
    config = load_config(preset, ["scale.workers=1", *overrides])
    split = read_manifest(open_folder(data_uri)).splits[config.data.train_split]
    middle = max(1, split.rows // config.train.global_batch // 2)
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
            {how: rates[how], allowed: [1 / MOST_SECONDS] * len(rates[how])},
            "1/s",
            1.0,
            {"seconds at most": 1 / min(rates[how])},
        )
        for how in starts
    ]


def first_batch(uri: str, config: RunConfig, step: int) -> float:
    """Seconds from nothing but a URI to the batch of a step, in new data workers and with Ray running."""
    begun = time.perf_counter()
    check_shards(open_folder(uri), read_manifest(open_folder(uri)), config.data.train_split)
    batches = stream(uri, config, 0, step)
    next(batches)
    waited = time.perf_counter() - begun
    batches.close()
    return waited


def _images(source_uri: str, into: Path) -> list[Path]:
    """BYTES of the source's images, as files below a folder."""
    source = open_folder(source_uri)
    names = [entry.name for entry in source.list() if entry.name.lower().endswith(IMAGES)]
    if not names:
        raise UserError(source.uri, "no images", f"files in {', '.join(IMAGES)}", "name another folder")
    files, size = list[Path](), 0
    for number, name in enumerate(cycle(names)):
        data, file = source.read(name), into / f"{number // len(names)}" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        files.append(file)
        size += len(data)
        if size >= BYTES:
            break
    return files


def _imported(scratch: Path, number: int) -> float:
    """Seconds of an import of the files into an empty folder."""
    data = scratch / f"data {number}"
    start = time.perf_counter()
    prepare("folder", str(scratch / "source"), str(data), ["splits=drawn", "classes=false"], lambda _: None)
    seconds = time.perf_counter() - start
    shutil.rmtree(data)
    return seconds


def _seconds(files: Sequence[Path], into: Path | None) -> float:
    """Of reading and hashing the files, and of writing their bytes if a folder is given."""
    if into:
        into.mkdir()
    cores = os.cpu_count() or 1
    start = time.perf_counter()
    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(partial(_read, into), range(cores), (files[core::cores] for core in range(cores))))
    seconds = time.perf_counter() - start
    if into:
        shutil.rmtree(into)
    return seconds


def _read(into: Path | None, number: int, files: Sequence[Path]) -> None:
    rest = iter(files)
    for piece in count():
        size, hashed = 0, list[bytes]()
        for file in rest:
            data = file.read_bytes()
            hashlib.sha256(data).digest()
            if into:
                hashed.append(data)
            size += len(data)
            if size >= PIECE:
                break
        if not size:
            return
        if into:
            with (into / f"{number} {piece}").open("wb") as out:
                out.writelines(hashed)
                out.flush()
                os.fsync(out.fileno())
