"""`benchmark.py train`: the training loop through Ray and DeepSpeed against bare PyTorch."""

import statistics
import tempfile
import time
from itertools import cycle, islice

import ray
import torch

from soda_dist.benchmarks.harness import Result, compare
from soda_dist.config.load import load_config
from soda_dist.config.schema import RunConfig
from soda_dist.data.preparation import prepare
from soda_dist.data.storage.folder import open_folder
from soda_dist.distributed.ingest import stream
from soda_dist.distributed.pretrain import pretrain
from soda_dist.distributed.runtime.actor_pool import ActorPool
from soda_dist.parallel.progress import Say
from soda_dist.runs.metrics_log import METRICS, read_lines
from soda_dist.training.build import build_objective, build_optimizer
from soda_dist.training.to_device import to_device

TRAIN_STEPS = 12


def measure_train(data_uri: str | None, overrides: list[str], say: Say) -> list[Result]:
    """Compare the loop through Ray Train and DeepSpeed with the same step in bare PyTorch, one worker, same batches.

    Limit: at most 15% more time. The batch is 32, since the preset's 512 takes a CPU most of a minute; a smaller batch
    makes the ratio worse, as fixed costs weigh more.
    """
    # Only the first steps of a long run, so that prefetch and back-pressure are as in real training.
    fields = [
        "optim.warmup_steps=2",
        "train.global_batch=32",
        "train.steps=100000",
        "train.log_every_steps=2",
        "train.checkpoint_every_steps=1000",
    ]
    config = load_config("cifar10", [*fields, *overrides])
    with tempfile.TemporaryDirectory() as scratch:
        data_uri = data_uri or render(f"{scratch}/data", say)
        on_worker = ray.remote(num_cpus=config.scale.cpus_per_worker)(_bare_rate)
        sides = {
            "Ray + DeepSpeed": lambda number: _loop_rate(config, data_uri, f"{scratch}/run-{number}"),
            "bare PyTorch": lambda number: ray.get(on_worker.remote(config, data_uri)),
        }
        return [compare("training loop", sides, "pairs/s", 1 / 1.15, say)]


def render(uri: str, say: Say) -> str:
    """Render 4,096 solids at 32 px to shards in the folder `uri`, which it returns."""
    return prepare("synthetic", None, uri, ["objects=4096", "views=1", "size=32"], ActorPool(say=say), say)


def _bare_rate(config: RunConfig, data_uri: str) -> float:
    """Measure pairs/s of forward, backward, clip and Adam alone, on batches in memory."""
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
    """Measure pairs/s of the real loop after its first log window."""
    pretrain(config, data_uri, run_uri, lambda _: None, until=TRAIN_STEPS)
    lines = read_lines(open_folder(run_uri), METRICS)
    return statistics.median(line["images_per_second"] for line in lines[1:])
