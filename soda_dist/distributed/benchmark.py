"""The benchmarks of `jobs/benchmark.py`: ratios of one run, with the rates they are made of.

The sides of a ratio alternate in rounds, since machines are shared and drift; a side's rate is the median of its
rounds.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from typing import Any

import ray
import torch
from torch.utils.data import DataLoader

from soda_dist.config.load import load_config
from soda_dist.config.schema import RunConfig
from soda_dist.data.jsonlines import METRICS, read_lines
from soda_dist.data.shards import ShardReader, read_manifest
from soda_dist.data.storage import open_folder
from soda_dist.distributed.ingest import stream
from soda_dist.distributed.prepare import prepare
from soda_dist.distributed.pretrain import pretrain
from soda_dist.distributed.session import Say
from soda_dist.training.build import build_objective, build_optimizer
from soda_dist.training.loop import to_device

ROUNDS = 3
Result = dict[str, Any]


def measure_train(data_uri: str | None, overrides: list[str], say: Say) -> list[Result]:
    """The loop through Ray Train and DeepSpeed against the same step in bare PyTorch on the same batches, one worker.

    The limit: at most 15% more time. The default batch is small enough for a CPU; the ratio is harder then, as fixed
    costs weigh more.
    """
    fields = ["train.global_batch=32", "train.steps=12", "train.log_every_steps=2", "train.checkpoint_every_steps=1000"]
    config = load_config("cifar10", [*fields, *overrides])
    with tempfile.TemporaryDirectory() as scratch:
        data_uri = data_uri or prepare("synthetic", None, f"{scratch}/data", ["objects=600", "views=1", "size=32"], say)
        bare, whole = [], []
        for number in range(ROUNDS):
            bare.append(ray.get(ray.remote(num_cpus=config.scale.cpus_per_worker)(_bare_rate).remote(config, data_uri)))
            whole.append(_loop_rate(config, data_uri, f"{scratch}/run-{number}"))
            say(f"round {number + 1}: bare PyTorch {bare[-1]:.2f} pairs/s, Ray + DeepSpeed {whole[-1]:.2f} pairs/s")
    return [_ratio("training loop", "Ray + DeepSpeed", whole, "bare PyTorch", bare, "pairs/s", 1 / 1.15)]


def _bare_rate(config: RunConfig, data_uri: str) -> float:
    """Pairs a second of forward, backward, clip, Adam and nothing else, on batches that are already in memory."""
    torch.set_num_threads(max(1, int(config.scale.cpus_per_worker)))
    batches = list(islice(stream(data_uri, config, 0, 0), 4))
    objective = build_objective(config)
    optimizer = build_optimizer(config, objective)
    rates = []
    for number, pairs in enumerate(islice(cycle(batches), config.train.steps)):
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
    pretrain(config, data_uri, run_uri, lambda _: None)
    lines = read_lines(open_folder(run_uri), METRICS)
    return statistics.median(line["images_per_second"] for line in lines[1:])


def measure_data(small_uri: str | None, photographs_uri: str | None, say: Say) -> list[Result]:
    """Ingest through Ray Data against a torch DataLoader with torchvision, one decoding process each.

    Both do the same work from the same shards: decode, two random resized crops with flips, RandAugment at the rate of
    table 12. The baseline holds the encoded images in memory; ours reads the shards.
    """
    results = []
    if small_uri:
        config = load_config("cifar10", ["train.steps=1000", "train.global_batch=512"])
        results.append(_against_loader("32 px", config, small_uri, 20, 0.85, say))
    if photographs_uri:
        one = ["scale.workers=1", "scale.data_cpus_per_worker=1", "optim.warmup_steps=10"]
        config = load_config("imagenet", ["train.steps=1000", "train.global_batch=32", *one])
        results.append(_against_loader("photographs", config, photographs_uri, 12, 1.0, say))
    return results


def _against_loader(name: str, config: RunConfig, uri: str, batches: int, limit: float, say: Say) -> Result:
    ours, theirs = [], []
    for number in range(ROUNDS):
        ours.append(_rate(stream(uri, config, 0, number * batches), config, batches))
        theirs.append(_rate(_loader(config, uri), config, batches))
        say(f"{name}, round {number + 1}: Ray Data {ours[-1]:.0f} pairs/s, DataLoader {theirs[-1]:.0f} pairs/s")
    return _ratio(f"ingest, {name}", "Ray Data", ours, "DataLoader", theirs, "pairs/s", limit)


def _rate(source: Iterator[Any], config: RunConfig, batches: int, skip: int = 4) -> float:
    """Pairs a second after the pipeline has filled."""
    for _ in range(skip):
        next(source)
    start = time.perf_counter()
    for _ in range(batches):
        next(source)
    return batches * config.train.global_batch / (time.perf_counter() - start)


def _loader(config: RunConfig, uri: str) -> Iterator[Any]:
    folder = open_folder(uri)
    manifest = read_manifest(folder)
    reader = ShardReader(folder, manifest, config.data.train_split)
    wanted = config.train.global_batch * 40
    images: list[bytes] = []
    for group in range(sum(len(shard.groups) for shard in manifest.splits[config.data.train_split].shards)):
        images += reader.group(group, ["image"])["image"].to_pylist()
        if len(images) >= wanted:
            break
    repeated = list(islice(cycle(images), wanted))
    from soda_dist.distributed.torchvision_baseline import TorchvisionPairs

    dataset = TorchvisionPairs(repeated, config.data)
    return iter(DataLoader(dataset, batch_size=config.train.global_batch, shuffle=True, num_workers=1))


def _ratio(
    name: str, ours: str, our_rates: list[float], theirs: str, their_rates: list[float], unit: str, limit: float
) -> Result:
    mine, other = statistics.median(our_rates), statistics.median(their_rates)
    return {
        "name": name, "unit": unit, ours: round(mine, 2), theirs: round(other, 2),
        "rounds": {ours: our_rates, theirs: their_rates}, "ratio": round(mine / other, 3), "limit": round(limit, 3),
    }  # fmt: skip


def conclude(results: list[Result], out_uri: str | None, say: Callable[[str], None]) -> str:
    """Print the table; write benchmark.json if a folder is given, and return its URI."""
    for result in results:
        sides = "  ".join(f"{side} {result[side]:g} {result['unit']}" for side in result["rounds"])
        verdict = "within" if result["ratio"] >= result["limit"] else "BELOW"
        say(f"{result['name']}: {sides}  ratio {result['ratio']:.3f}  {verdict} the limit {result['limit']:g}")
    if out_uri is None:
        return ""
    folder = open_folder(out_uri)
    folder.write_json("benchmark.json", results)
    return folder.file_uri("benchmark.json")
