"""Entry modules import quickly: what is slow to import is imported where it is used."""

import json
import subprocess
import sys

import pytest

ENTRIES = {
    # CPU seconds beyond those of torch alone
    "soda_dist.distributed.pretrain": 1.5,
    "soda_dist.distributed.evaluate_on_ray": 2.0,
    "soda_dist.distributed.tune": 2.0,
    "soda_dist.distributed.ablate": 2.0,
    "soda_dist.evaluation.task_runner": 2.0,
    "soda_dist.report.page": 1.0,
    "soda_dist.training.build": 1.0,
    "soda_dist.training.plan": 1.0,
}
HEAVY = (
    "deepspeed", "jinja2", "lightgbm", "lpips", "matplotlib", "pandas", "ray.data", "ray.train", "ray.tune", "scipy",
    "sklearn", "timm", "torch._dynamo", "torch.utils.flop_counter", "torch_fidelity", "torchvision",
)  # fmt: skip
MEASURE = """
import importlib, json, resource, sys
def seconds():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
import torch
alone = seconds()
found = set(sys.modules)
importlib.import_module(sys.argv[1])
names = [name for name in sys.argv[2:] if name in sys.modules and name not in found]
print(json.dumps([alone, seconds() - alone, names]))
"""


def _start(module: str) -> tuple[float, float, list[str]]:
    """CPU seconds of importing torch, those of then importing `module`, and the heavy modules that it imports."""
    command = [sys.executable, "-c", MEASURE, module, *HEAVY]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    alone, more, names = json.loads(result.stdout.splitlines()[-1])
    return alone, more, names


@pytest.mark.parametrize("module", ENTRIES)
def test_an_entry_imports_nothing_heavy_and_keeps_its_budget(module: str) -> None:
    alone, more, names = _start(module)
    assert names == []
    # Processes that share the cores slow each other down, torch's import as much as the rest; alone it takes 1.9 s.
    assert more < ENTRIES[module] * max(1.0, alone / 1.9)


def test_heavy_imports_are_found() -> None:
    _, _, names = _start("soda_dist.models.backbones")
    assert {"timm", "torchvision", "torch._dynamo"} <= set(names)
