"""`benchmark.py data` and `train`: the ingest against a torch DataLoader, the training loop against bare PyTorch."""

import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from functools import partial
from itertools import cycle, islice
from typing import Any

import cv2
import numpy as np
import ray
import torch
from torch.utils.data import DataLoader, default_collate

from soda_dist.config.load import load_config
from soda_dist.config.schema import RunConfig
from soda_dist.data.jsonlines import METRICS, read_lines
from soda_dist.data.shards import ShardReader, read_manifest
from soda_dist.data.storage import open_folder
from soda_dist.data.views import view_pairs
from soda_dist.distributed.ingest import stream
from soda_dist.distributed.prepare import prepare
from soda_dist.distributed.pretrain import pretrain
from soda_dist.distributed.rounds import Result, compare
from soda_dist.distributed.session import Say
from soda_dist.distributed.torchvision_baseline import Decoder, TorchvisionPairs
from soda_dist.training.build import build_objective, build_optimizer
from soda_dist.training.loop import to_device

TRAIN_STEPS = 12
SECONDS = 12.0
"""How long a side of the ingest is watched in a round, after its pipeline has filled."""
DECODERS: tuple[Decoder, ...] = ("Pillow", "tensors")


def measure_train(data_uri: str | None, overrides: list[str], say: Say) -> list[Result]:
    """The loop through Ray Train and DeepSpeed against the same step in bare PyTorch on the same batches, one worker.

    The limit: at most 15% more time. The batch is 32, since the preset's 512 takes a CPU most of a minute; the ratio is
    the harder for it, as the update's fixed costs weigh more.
    """
    # A long run, of which the first steps are done: the ingest runs ahead and is held back, as it is in earnest.
    fields = [
        "optim.warmup_steps=2",
        "train.global_batch=32",
        "train.steps=100000",
        "train.log_every_steps=2",
        "train.checkpoint_every_steps=1000",
    ]
    config = load_config("cifar10", [*fields, *overrides])
    with tempfile.TemporaryDirectory() as scratch:
        data_uri = data_uri or rendered(f"{scratch}/data", say)
        on_worker = ray.remote(num_cpus=config.scale.cpus_per_worker)(_bare_rate)
        sides = {
            "Ray + DeepSpeed": lambda number: _loop_rate(config, data_uri, f"{scratch}/run-{number}"),
            "bare PyTorch": lambda number: ray.get(on_worker.remote(config, data_uri)),
        }
        return [compare("training loop", sides, "pairs/s", 1 / 1.15, say)]


def rendered(uri: str, say: Say) -> str:
    """Shards of 4,096 solids at 32 px in the folder `uri`, which is returned."""
    return prepare("synthetic", None, uri, ["objects=4096", "views=1", "size=32"], say)


def _bare_rate(config: RunConfig, data_uri: str) -> float:
    """Pairs a second of forward, backward, clip, Adam and nothing else, on batches that are already in memory."""
    torch.set_num_threads(max(1, int(config.scale.cpus_per_worker)))
    batches = list(islice(stream(data_uri, config, 0, 0), 4))
    objective = build_objective(config)
    optimizer = build_optimizer(config, objective)
    rates = []
    for number, pairs in enumerate(islice(cycle(batches), TRAIN_STEPS)):
        start = time.perf_counter()
        objective(*to_device(pairs, torch.device("cpu"))).backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), config.optim.clip_norm, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if number >= config.train.log_every_steps:
            rates.append(config.train.global_batch / (time.perf_counter() - start))
    return statistics.median(rates)


def _loop_rate(config: RunConfig, data_uri: str, run_uri: str) -> float:
    """Pairs a second of the real loop after its first log window."""
    pretrain(config, data_uri, run_uri, lambda _: None, until=TRAIN_STEPS)
    lines = read_lines(open_folder(run_uri), METRICS)
    return statistics.median(line["images_per_second"] for line in lines[1:])


def measure_data(small_uri: str | None, photographs_uri: str | None, say: Say) -> list[Result]:
    """The data plane against torch's DataLoader and torchvision, from the same shards, doing the same work.

    The work: decode, two random resized crops with flips, RandAugment at the rate of table 12, batches of uint8. For
    each kind of image, the ingest (one decoding process on each side) and the views alone (CPU time of one thread).
    torchvision runs once on Pillow images and once on tensors. Its side holds the encoded images in memory; ours reads
    the shards.
    """
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # the stream runs in this process, with its log
    one = ["scale.workers=1", "scale.data_cpus_per_worker=1", "optim.warmup_steps=10", "train.steps=4000"]
    with tempfile.TemporaryDirectory() as scratch:
        small = load_config("cifar10", [*one, "train.global_batch=512"])
        results = _data_ratios("32 px", small, small_uri or rendered(f"{scratch}/data", say), 0.85, 1024, say)
        if photographs_uri:
            # 128 pairs are one read task's block, so that batches come one by one and not in bursts.
            large = load_config("imagenet", [*one, "train.global_batch=128"])
            results += _data_ratios("photographs", large, photographs_uri, 1.0, 64, say)
    return results


def _data_ratios(name: str, config: RunConfig, uri: str, limit: float, piece: int, say: Say) -> list[Result]:
    images = _images(config, uri, 40 * config.train.global_batch)
    batch = config.train.global_batch
    ingest: dict[str, Callable[[int], float]] = {
        "Ray Data": lambda number: _rate(_streamed(uri, config, number), batch),
        **{f"DataLoader, {d}": partial(_loader_rate, images, config, d) for d in DECODERS},
    }
    alone: dict[str, Callable[[int], float]] = {
        "data.views": lambda number: _cpu_rate(partial(_our_views, config), images, number, piece),
        **{f"torchvision, {d}": partial(_their_cpu_rate, images, config, d, piece) for d in DECODERS},
    }
    return [
        compare(f"ingest, {name}", ingest, "pairs/s", limit, say),
        compare(f"views, {name}", alone, "pairs/CPU-s", 1.0, say),
    ]


def _images(config: RunConfig, uri: str, count: int) -> list[bytes]:
    """`count` encoded images of the training split, in the order of its rows, over again where it has fewer."""
    folder = open_folder(uri)
    manifest = read_manifest(folder)
    reader = ShardReader(folder, manifest, config.data.train_split)
    found: list[bytes] = []
    for group in range(sum(len(shard.groups) for shard in manifest.splits[config.data.train_split].shards)):
        found += reader.group(group, ["image"])["image"].to_pylist()
        if len(found) >= count:
            break
    return list(islice(cycle(found), count))


def _streamed(uri: str, config: RunConfig, number: int) -> Generator[Any, None, None]:
    """Our batches; each round goes on at another place of the run."""
    yield from stream(uri, config, 0, 1000 * number)


def _batches(loader: Any) -> Generator[Any, None, None]:
    yield from loader


def _loader_rate(images: list[bytes], config: RunConfig, decoder: Decoder, number: int) -> float:
    batch = config.train.global_batch
    dataset = TorchvisionPairs(images, config.data, decoder)
    generator = torch.Generator().manual_seed(number)
    return _rate(_batches(DataLoader(dataset, batch, shuffle=True, num_workers=1, generator=generator)), batch)


def _rate(batches: Generator[Any, None, None], size: int, skip: int = 4) -> float:
    """Pairs a second after the pipeline has filled; the pipeline is closed, so that it takes nothing from the next."""
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
    keys = np.arange(first, first + len(images))
    own = np.arange(len(images))
    view_pairs(list(images), np.stack([own, own], 1), keys, np.zeros_like(keys), seed=0, data=config.data)


def _their_cpu_rate(images: list[bytes], config: RunConfig, decoder: Decoder, piece: int, number: int) -> float:
    dataset = TorchvisionPairs(images, config.data, decoder)

    def views(part: Sequence[bytes], first: int) -> None:
        default_collate([dataset[i] for i in range(first, first + len(part))])

    return _cpu_rate(views, images, number, piece)


def _cpu_rate(views: Callable[[Sequence[bytes], int], None], images: list[bytes], number: int, piece: int) -> float:
    """Pairs for each second of CPU time, on one thread, after one piece to warm up."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    first = piece * (2 * number % (len(images) // piece - 1))
    views(images[first : first + piece], first)
    start = time.process_time()
    views(images[first + piece : first + 2 * piece], first + piece)
    return piece / (time.process_time() - start)
