"""Entry modules import quickly: what is slow to import is imported where it is used."""

import json
import subprocess
import sys
from typing import NamedTuple

import pytest

ENTRIES = {
    # CPU seconds beyond those of torch alone
    "soda_dist.distributed.pretrain": 1.5,
    "soda_dist.distributed.evaluate_on_ray": 2.0,
    "soda_dist.distributed.tune": 2.0,
    "soda_dist.distributed.ablate": 2.0,
    "soda_dist.evaluation.task_runner": 2.0,
    "soda_dist.inference.embedding": 2.0,
    "soda_dist.report.page": 1.0,
    "soda_dist.training.build": 1.0,
    "soda_dist.training.plan": 1.0,
}
HEAVY = (
    "deepspeed", "jinja2", "lightgbm", "lpips", "matplotlib", "pandas", "ray.data", "ray.train", "ray.tune", "scipy",
    "sklearn", "timm", "torch._dynamo", "torch.utils.flop_counter", "torch_fidelity", "torchvision",
)  # fmt: skip
MEASURE = """
import importlib, json, os, resource, sys
def seconds():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
import torch
alone, found = seconds(), set(sys.modules)
entries, heavy = json.loads(sys.argv[1])
for entry in entries:
    if not os.fork():
        importlib.import_module(entry)
        names = [name for name in heavy if name in sys.modules and name not in found]
        print(json.dumps([entry, alone, seconds(), names]), flush=True)
        os._exit(0)
    os.wait()
"""


class Start(NamedTuple):
    """CPU seconds of importing torch, those of then importing an entry, and the heavy modules that it imports."""

    torch: float
    entry: float
    heavy: list[str]


@pytest.fixture(scope="module")
def starts() -> dict[str, Start]:
    """Each entry in a fork of one process that has imported torch alone; a child's CPU time begins at its fork."""
    command = [sys.executable, "-c", MEASURE, json.dumps([[*ENTRIES, "soda_dist.models.backbones"], HEAVY])]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    return {entry: Start(*start) for entry, *start in answers}


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_entry_imports_nothing_heavy_and_keeps_its_budget(entry: str, starts: dict[str, Start]) -> None:
    start = starts[entry]
    assert start.heavy == []
    # Processes that share the cores slow each other down, torch's import as much as the rest; alone it takes 1.9 s.
    assert start.entry < ENTRIES[entry] * max(1.0, start.torch / 1.9)


def test_heavy_imports_are_found(starts: dict[str, Start]) -> None:
    assert {"timm", "torchvision", "torch._dynamo"} <= set(starts["soda_dist.models.backbones"].heavy)
