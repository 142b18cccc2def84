"""`benchmark.py step`: an update in several precisions, and its FLOP/s relative to a large matmul.

Needs no Ray.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from soda_dist.benchmarks.harness import Result, Side, alternate, ratio
from soda_dist.config.load import load_config
from soda_dist.config.schema import RunConfig
from soda_dist.errors import UserError
from soda_dist.parallel.progress import Say
from soda_dist.training.build import build_objective, torch_engine
from soda_dist.training.engines.engine import MicroBatch
from soda_dist.training.engines.torch_engine import TorchEngine
from soda_dist.training.plan import some_pose
from soda_dist.training.randomness import draw

Device = Literal["cpu", "cuda"]
PAIRS = {"cpu": 4, "cuda": 256}
"""Default number of pairs per update."""
STEPS = {"cpu": 1, "cuda": 10}
"""Timed updates per round."""
WARM_UP = {"cpu": 1, "cuda": 3}
MATMUL_SIDE = {"cpu": 2048, "cuda": 8192}
CPU_COMPILES = "bf16 + compile skipped on CPU: compiling the backward pass takes minutes"


@dataclass(frozen=True)
class Mode:
    """Arithmetic of an update."""

    bf16: bool
    tf32: bool = False
    channels_last: bool = False
    compiled: bool = False

    @property
    def unit(self) -> str:
        """Matmul precision that bounds the update."""
        return "bf16" if self.bf16 else "TF32" if self.tf32 else "float32"


BASELINE = "float32"
MODES = {
    BASELINE: Mode(bf16=False),
    "TF32": Mode(bf16=False, tf32=True),
    "bf16": Mode(bf16=True),
    "bf16 + channels-last": Mode(bf16=True, channels_last=True),
    "bf16 + compile": Mode(bf16=True, compiled=True),
}


def measure_step(preset: str, overrides: list[str], device_name: Device, say: Say) -> list[Result]:
    """Compare pairs/s of forward, backward, clip, AdamW and EMA on batches in memory with eager float32.

    FLOPs, as torch counts them in float32 (a multiply-add is two), are related to a large matmul of the same precision
    in the same run. The time of the step's addressed random numbers is printed too.

    Raises:
        UserError: a missing device, an override of a setting that the benchmark varies, or too little GPU memory.
    """
    device = device_of(device_name)
    fields = ["scale.workers=1", "scale.gpus_per_worker=0", f"train.global_batch={PAIRS[device.type]}"]
    config = load_config(preset, [*fields, *allowed_overrides(overrides, ["train.precision"])])
    pairs, batches = config.train.global_batch, noise_batches(config, device)
    modes = {name: mode for name, mode in MODES.items() if device.type == "cuda" or not (mode.compiled or mode.tf32)}
    if device.type == "cpu":
        say(CPU_COMPILES)
    try:
        engines = {name: _engine(config, mode, device) for name, mode in modes.items()}
        flops = _flops(engines[BASELINE], batches) / pairs
        say(f"{flops / 1e9:.3g} GFLOP per pair, {pairs} pairs per update; {_draw_time(config, batches)}")
        sides = {name: _side(engine, modes[name], config, batches) for name, engine in engines.items()}
        for name, side in sides.items():
            say(f"{name}: warm-up round, {side(-1):.4g} pairs/s")
        rounds = alternate(f"update, {preset}", sides, "pairs/s", say)
    except torch.OutOfMemoryError:
        allowed, remedy = "a batch that fits in GPU memory", "lower it, or set train.micro_batch"
        raise UserError("train.global_batch", pairs, allowed, remedy) from None
    peaks = {unit: matmul_rate(unit, device) for unit in {mode.unit for mode in modes.values()}}
    results = []
    for name, mode in modes.items():
        both = {name: rounds[name], BASELINE: rounds[BASELINE]}
        row = ratio(f"update, {preset}, {name}", both, "pairs/s", None)
        reached = row["median"][name] * flops / 1e12
        row["facts"] = {"TFLOP/s": round(reached, 3), f"of a {mode.unit} matmul's": round(peaks[mode.unit], 3)}
        results.append({**row, "share": round(reached / peaks[mode.unit], 4)})
    return results


def device_of(name: Device) -> torch.device:
    """Return the device; raise `UserError` if the machine has none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device", name, "cpu", "run it on a machine with a CUDA GPU")
    return torch.device(name)


def allowed_overrides(overrides: list[str], varied: list[str]) -> list[str]:
    """Return the overrides; raise `UserError` if one sets a field that the benchmark varies."""
    for field in varied:
        for override in overrides:
            if override.partition("=")[0] == field:
                got = override.partition("=")[2]
                raise UserError(field, got, "no override: the benchmark varies it", "remove it")
    return overrides


def wait(device: torch.device) -> None:
    """Wait for the device to finish its queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Allow or forbid TF32 for float32 matmuls and convolutions on CUDA within the context."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def noise_batches(config: RunConfig, device: torch.device) -> list[MicroBatch]:
    """Generate the micro-batches of two updates: seeded noise, all views present."""
    data, size = config.data, config.micro_batch
    generator = torch.Generator().manual_seed(config.seed)
    pose = some_pose(config)
    poses = torch.zeros(size, 0) if pose is None else pose.repeat(size, 1)
    views = data.sources[1]

    def pixels(*shape: int) -> Tensor:
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

    def batch(number: int) -> MicroBatch:
        return MicroBatch(
            source=pixels(size, views, data.source_size, data.source_size, 3),
            target=pixels(size, data.target_size, data.target_size, 3),
            ok=torch.ones(size, dtype=torch.bool),
            index=torch.arange(number * size, (number + 1) * size),
            present=torch.ones(size, views, dtype=torch.bool),
            source_pose=poses[:, None].repeat(1, views, 1),
            target_pose=poses,
            label=torch.zeros(size, 0, dtype=torch.int64),
        )

    return [MicroBatch(*(part.to(device) for part in batch(n))) for n in range(2 * config.accumulation)]


def matmul_rate(unit: str, device: torch.device) -> float:
    """Measure TFLOP/s of a large square matmul in `float32`, `TF32` or `bf16`: best of ten."""
    side = MATMUL_SIDE[device.type]
    left, right = (torch.randn(side, side, device=device).to(torch.bfloat16 if unit == "bf16" else torch.float32),) * 2
    times = []
    with tf32(unit == "TF32"):
        for _ in range(10):
            wait(device)
            start = time.perf_counter()
            left @ right
            wait(device)
            times.append(time.perf_counter() - start)
    return 2 * side**3 / min(times) / 1e12


def _engine(config: RunConfig, mode: Mode, device: torch.device) -> TorchEngine:
    objective = build_objective(config).to(device)
    objective.model.precision = "bf16" if mode.bf16 else "fp32"
    if mode.channels_last:
        objective.to(memory_format=torch.channels_last)
    if mode.compiled:
        for name in ("encoder", "denoiser", "decoder"):
            if (network := getattr(objective.model, name, None)) is not None:
                network.compile()
    return torch_engine(config, objective)


def _side(engine: TorchEngine, mode: Mode, config: RunConfig, batches: list[MicroBatch]) -> Side:
    device = batches[0].source.device
    endless, lr = cycle(batches), config.optim.lr

    def rate(number: int) -> float:
        with tf32(mode.tf32):
            for _ in range(WARM_UP[device.type] if number < 0 else 0):
                engine.step(islice(endless, config.accumulation), lr)
            wait(device)
            start = time.perf_counter()
            for _ in range(STEPS[device.type]):
                engine.step(islice(endless, config.accumulation), lr)
            wait(device)
            return STEPS[device.type] * config.train.global_batch / (time.perf_counter() - start)

    return rate


def _flops(engine: TorchEngine, batches: list[MicroBatch]) -> int:
    """Count FLOPs of matmuls and convolutions, forward and backward; `training.plan` explains the math attention."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        engine.step(batches[: len(batches) // 2], 0.0)
    return counter.get_total_flops()


def _draw_time(config: RunConfig, batches: list[MicroBatch]) -> str:
    """Time the addressed random numbers of one update."""
    device, data = batches[0].source.device, config.data

    def draws() -> None:
        for batch in batches[: len(batches) // 2]:
            draw(
                config.seed,
                batch.index,
                timesteps=config.diffusion.steps,
                sources=data.sources[1] if data.source_noise else 0,
                source_size=data.source_size,
                target_size=data.target_size,
                sections=config.denoiser.sections,
                rates=(config.denoiser.layer_mask_rate, config.denoiser.guidance_mask_rate, config.pose.mask_rate),
                device=device,
            )

    return f"random numbers take {1e3 * seconds(draws, device):.1f} ms"


def seconds(work: Callable[[], object], device: torch.device, *, warm: bool = True) -> float:
    """Measure seconds of `work`; `warm`: after one warm-up run."""
    if warm:
        work()
    wait(device)
    start = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - start
