"""`benchmark.py data`: view pairs per second, against torch's DataLoader, a bare process pool and decoding alone.

Each side uses one decoding and one consuming process for the same work: decode, two random resized crops with flips,
RandAugment at the rate of table 12, uint8 batches. torchvision runs on Pillow images and on tensors, with compressed
images in memory; ours reads shards.
"""

import logging
import multiprocessing
import tempfile
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from functools import partial
from itertools import cycle, islice
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, default_collate

from soda_dist.benchmarks.harness import Result, Side, alternate, ratio
from soda_dist.benchmarks.startup import first_batch
from soda_dist.benchmarks.torchvision_pairs import Decoder, TorchvisionPairs
from soda_dist.benchmarks.training_loop import render
from soda_dist.config.load import load_config
from soda_dist.config.schema import RunConfig
from soda_dist.data.pairs import Pairs, read_pairs
from soda_dist.data.shards import ShardReader, read_manifest
from soda_dist.data.storage.folder import open_folder
from soda_dist.data.views.decode import decode, read_header
from soda_dist.data.views.pair_views import view_pairs
from soda_dist.distributed.ingest import opened, stream
from soda_dist.parallel.progress import Say

SECONDS = 12.0
"""Measuring time per side and round, after its pipeline has filled."""
DECODERS: tuple[Decoder, ...] = ("Pillow", "tensors")
OURS, POOL, DECODING = "Ray Data", "process pool", "decoding alone"
VIEWS, DEVICE_AUGMENT = "data.views", "data.views, RandAugment left to the device"
ON_DEVICE = "data.augmentation.randaugment_on=device"
POOL_LIMIT = 1 / 1.2
DECODING_LIMIT = 0.6
DEVICE_LIMIT = 1.5


def measure_data(
    small_uri: str | None, photographs_uri: str | None, reencoded_uri: str | None, say: Say
) -> list[Result]:
    """Measure all ratios at 32 px and, if given, on photographs at the paper's sizes.

    Args:
        small_uri: shards of 32 px images; None = rendered.
        reencoded_uri: the same photographs, re-encoded at import.
    """
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # the stream runs in this process, with its log
    one = ["scale.workers=1", "scale.data_cpus_per_worker=1", "optim.warmup_steps=10", "train.steps=4000"]
    with tempfile.TemporaryDirectory() as scratch:
        small = [*one, "train.global_batch=512"]
        results = _ratios("32 px", "cifar10", small, small_uri or render(f"{scratch}/data", say), 1.5, 1024, say)
        if photographs_uri:
            large = [*one, "train.global_batch=128"]
            results += _ratios("photographs", "imagenet", large, photographs_uri, 2.0, 64, say)
            if reencoded_uri:
                results.append(_reencoded(load_config("imagenet", large), photographs_uri, reencoded_uri, say))
    return results


def _reencoded(config: RunConfig, published: str, reencoded: str, say: Say) -> Result:
    batch = config.train.global_batch
    sides: dict[str, Side] = {
        name: partial(lambda uri, number: _rate(stream(uri, config, 0, 1000 * number), batch), uri)
        for name, uri in {"re-encoded": reencoded, "as published": published}.items()
    }
    settings = read_manifest(open_folder(reencoded)).reencoded
    name = f"ingest, photographs, {settings or 'images as published, too'}"
    return ratio(name, alternate(name, sides, "pairs/s", say), "pairs/s", None)


def _ratios(name: str, preset: str, overrides: list[str], uri: str, limit: float, piece: int, say: Say) -> list[Result]:
    config = load_config(preset, overrides)
    images, batch = _images(config, uri, 40 * config.train.global_batch), config.train.global_batch
    device_augment = load_config(preset, [*overrides, ON_DEVICE])
    first_batch_s = first_batch(uri, config, 0)
    loaders: dict[str, Side] = {f"DataLoader, {d}": partial(_loader_rate, images, config, d) for d in DECODERS}
    rates = alternate(
        f"ingest, {name}",
        {
            OURS: lambda number: _rate(stream(uri, config, 0, 1000 * number), batch),
            **loaders,
            POOL: lambda number: _rate(_pooled(uri, config, number), batch),
            DECODING: lambda number: _rate(_decoded(images, batch, number), batch),
        },
        "pairs/s",
        say,
    )
    their_rate = partial(_their_cpu_rate, images, config, piece)
    theirs: dict[str, Side] = {f"torchvision, {d}": partial(their_rate, d) for d in DECODERS}
    ours: dict[str, Side] = {
        VIEWS: lambda number: _cpu_rate(partial(_our_views, config), images, number, piece),
        DEVICE_AUGMENT: lambda number: _cpu_rate(partial(_our_views, device_augment), images, number, piece),
    }
    views = alternate(f"views, {name}", {**ours, **theirs}, "pairs/CPU-s", say)

    def result(
        title: str, found: dict[str, list[float]], first: str, others: Sequence[str], minimum: float, **facts: float
    ) -> Result:
        unit = "pairs/s" if found is rates else "pairs/CPU-s"
        return ratio(f"{title}, {name}", {side: found[side] for side in (first, *others)}, unit, minimum, facts)

    results = [
        result("ingest", rates, OURS, list(loaders), limit, **{"seconds to the first batch": first_batch_s}),
        result("ingest against the same functions in a bare process pool", rates, OURS, [POOL], POOL_LIMIT),
        result("views", views, VIEWS, list(theirs), 1.0),
        result("views with RandAugment left to the device", views, DEVICE_AUGMENT, [VIEWS], DEVICE_LIMIT),
    ]
    if preset == "imagenet":
        results.append(result("ingest against decoding alone", rates, OURS, [DECODING], DECODING_LIMIT))
    return results


def _images(config: RunConfig, uri: str, count: int) -> list[bytes]:
    """Read `count` compressed images of the training split in row order, cycling if it has fewer."""
    folder = open_folder(uri)
    manifest = read_manifest(folder)
    reader = ShardReader(folder, manifest, config.data.train_split)
    found: list[bytes] = []
    for group in range(sum(len(shard.groups) for shard in manifest.splits[config.data.train_split].shards)):
        found += reader.group(group, ["image"])["image"].to_pylist()
        if len(found) >= count:
            break
    return list(islice(cycle(found), count))


def _pooled(uri: str, config: RunConfig, number: int) -> Generator[Any, None, None]:
    """Yield the same batches from a pool with one process, which pickles them."""
    batch, ahead = config.train.global_batch, deque[Future[Pairs]]()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            for step in range(1000 * number, config.train.steps):
                ahead.append(pool.submit(_pool_batch, uri, config, step * batch, (step + 1) * batch))
                if len(ahead) > 4:
                    yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _pool_batch(uri: str, config: RunConfig, start: int, stop: int) -> Pairs:
    cv2.setNumThreads(1)
    reader, order = opened(uri, config)
    return read_pairs(reader, order, start, stop, seed=config.seed, data=config.data)


def _decoded(images: list[bytes], batch: int, number: int) -> Generator[Any, None, None]:
    """Decode whole images at full size in this process, batch by batch."""
    rest = cycle(images[number * batch :] + images[: number * batch])
    while True:
        for data in islice(rest, batch):
            header = read_header(data)
            if header is not None:
                decode(data, header, 1)
        yield batch


def _loader_rate(images: list[bytes], config: RunConfig, decoder: Decoder, number: int) -> float:
    batch = config.train.global_batch
    dataset = TorchvisionPairs(images, config.data, decoder)
    generator = torch.Generator().manual_seed(number)
    loader = DataLoader(dataset, batch, shuffle=True, num_workers=1, generator=generator)
    return _rate((each for each in loader), batch)


def _rate(batches: Generator[Any, None, None], size: int, skip: int = 4) -> float:
    """Measure pairs/s after the pipeline has filled, then close it so that it does not slow down the next side."""
    for _ in range(skip):
        next(batches)
    count, start = 0, time.perf_counter()
    for _ in batches:
        count += 1
        if time.perf_counter() - start >= SECONDS:
            break
    seconds = time.perf_counter() - start
    batches.close()
    return count * size / seconds


def _our_views(config: RunConfig, images: Sequence[bytes], first: int) -> None:
    keys, own = np.arange(first, first + len(images)), np.arange(len(images))
    view_pairs(list(images), np.stack([own, own], 1), keys, np.zeros_like(keys), seed=0, data=config.data)


def _their_cpu_rate(images: list[bytes], config: RunConfig, piece: int, decoder: Decoder, number: int) -> float:
    dataset = TorchvisionPairs(images, config.data, decoder)

    def views(part: Sequence[bytes], first: int) -> None:
        default_collate([dataset[i] for i in range(first, first + len(part))])

    return _cpu_rate(views, images, number, piece)


def _cpu_rate(views: Callable[[Sequence[bytes], int], None], images: list[bytes], number: int, piece: int) -> float:
    """Measure pairs per second of CPU time on one thread, after one chunk of warm-up."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    first = piece * (2 * number % (len(images) // piece - 1))
    views(images[first : first + piece], first)
    start = time.process_time()
    views(images[first + piece : first + 2 * piece], first + piece)
    return piece / (time.process_time() - start)
