"""`train.precision: auto`: bf16 where the device computes faster in it."""

import time
from pathlib import Path

import torch
import torch.nn.functional as F

from soda_dist.config.load import with_fields
from soda_dist.config.schema import RunConfig
from soda_dist.config.settle import PRECISION
from soda_dist.models.method import Precision

LEAST_CAPABILITY = (8, 0)
"""CUDA compute capability from which GPUs have units for bf16."""
CPU_FLAGS = {"amx_bf16", "avx512_bf16"}
"""Flags of /proc/cpuinfo of CPUs with such units. Others compute in bf16 up to 15 times slower than in float32."""
GAIN = 1.3
"""Least speed-up in bf16 for which a CPU gets it."""


def with_precision(config: RunConfig, device: torch.device) -> RunConfig:
    """Replace `auto` by what suits `device`; every other precision stays."""
    if config.train.precision != "auto":
        return config
    return with_fields(config, {PRECISION: device_precision(device)})


def device_precision(device: torch.device) -> Precision:
    """Return the precision that suits a device."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY else "fp32"
    if device.type == "cpu" and has_bf16_units(Path("/proc/cpuinfo")) and speed_up() > GAIN:
        return "bf16"
    return "fp32"


def has_bf16_units(cpuinfo: Path) -> bool:
    """Whether the CPU's flags name units for bf16; without the file, no."""
    if not cpuinfo.exists():
        return False
    return any(CPU_FLAGS & set(line.split()) for line in cpuinfo.read_text().splitlines() if line.startswith("flags"))


def speed_up() -> float:
    """Measure the speed of a convolution, forward and backward, in bf16 over that in float32."""
    return _seconds(bf16=False) / _seconds(bf16=True)


def _seconds(*, bf16: bool) -> float:
    x, weight = torch.ones(8, 64, 32, 32), torch.ones(64, 64, 3, 3, requires_grad=True)
    found = []
    for _ in range(4):  # the first is a warm-up
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = F.conv2d(x, weight, padding=1).float().sum()
        torch.autograd.grad(loss, weight)
        found.append(time.perf_counter() - start)
    return min(found[1:])
