"""`benchmark.py sample`: our sampler against a plain loop over a diffusers scheduler, with the same network and noise.

Needs no Ray.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from soda_dist.benchmarks.harness import Result, Side, alternate, ratio
from soda_dist.benchmarks.update import Device, allowed_overrides, device_of, noise_batches, tf32, wait
from soda_dist.config.load import load_config
from soda_dist.config.schema import RunConfig
from soda_dist.config.sections import Sampling
from soda_dist.diffusion.sampling import ReverseStep, reverse_steps
from soda_dist.errors import UserError
from soda_dist.models.condition import Condition, Sources, join
from soda_dist.models.method import DiffusionMethod, Precision, Recipe
from soda_dist.models.pixels import source_input
from soda_dist.parallel.progress import Say
from soda_dist.training.build import build_objective

DEFAULTS = {"cpu": ["evaluation.images=2", "sampling.steps=5"], "cuda": ["evaluation.images=128", "sampling.steps=25"]}
OURS, THEIRS, PLAIN = "float32", "diffusers, float32", "without guidance"
CPU_COMPILES = "compiled denoiser skipped on CPU: compiling takes longer than the whole benchmark"


@dataclass(frozen=True)
class Task:
    """A batch for either side to sample."""

    model: DiffusionMethod
    condition: Condition
    without: Condition
    """Unguided condition, as `Recipe.without`."""
    plan: list[ReverseStep]
    start: Tensor
    """x_T, float32 [B, 3, r, r]."""
    settings: Sampling
    w: float
    """Guidance scale."""
    seed: int
    """Seed of the noise that the steps add, in their order."""

    def generator(self) -> torch.Generator:
        """Create the generator of the steps' noise, for either side."""
        return torch.Generator(self.start.device).manual_seed(self.seed)


def measure_sampling(preset: str, overrides: list[str], device_name: Device, say: Say) -> list[Result]:
    """Compare images/s of our sampler with diffusers (limit 1.0), without guidance, and in faster arithmetic.

    A batch has `evaluation.images` images. Guidance is one batched call per step on both sides. Encoding is excluded.

    Raises:
        UserError: a missing device or diffusers, a method that does not denoise, or an override of a setting that the
            benchmark varies.
    """
    device = device_of(device_name)
    config = load_config(preset, [*DEFAULTS[device.type], *allowed_overrides(overrides, ["train.precision"])])
    check_guided(config.sampling)
    task = make_task(config, device)
    draws: dict[str, Callable[[], Tensor]] = {
        OURS: partial(draw_ours, task),
        THEIRS: partial(draw_theirs, task),
        PLAIN: partial(draw_ours, replace(task, w=1.0)),
        "bf16": partial(_in_precision, task, "bf16"),
    }
    channels_last = replace(task, model=_build_model(config, device))
    channels_last.model.to(memory_format=torch.channels_last)
    draws["channels-last"] = partial(draw_ours, channels_last)
    if device.type == "cuda":
        compiled = replace(task, model=_build_model(config, device))
        compiled.model.denoiser.compile()
        draws["compile"] = partial(draw_ours, compiled)
        draws["bf16 + compile"] = partial(_in_precision, compiled, "bf16")
    else:
        say(CPU_COMPILES)
    calls = {name: count_calls(task.model, draws[name]) / config.sampling.steps for name in (OURS, THEIRS, PLAIN)}
    say("network calls per step: " + ", ".join(f"{name} {number:g}" for name, number in calls.items()))
    sides = {name: _side(draw, device, len(task.start)) for name, draw in draws.items()}
    for name, side in sides.items():
        say(f"{name}: warm-up round, {side(-1):.4g} images/s")
    rounds = alternate(f"sampling, {preset}", sides, "images/s", say)
    return _rows(f"sampling, {preset}", rounds, calls)


def check_guided(settings: Sampling) -> None:
    """Raise `UserError` for settings that the loop over diffusers does not support."""
    for field, got, allowed in [
        ("guidance", settings.guidance, settings.guidance not in (0, 1)),
        ("stochastic", settings.stochastic, not settings.stochastic),
        ("masked_sections", list(settings.masked_sections), not settings.masked_sections),
    ]:
        if not allowed:
            allowed_values = {"guidance": "other than 0 and 1"}.get(field, "its default")
            raise UserError(f"sampling.{field}", got, allowed_values, "remove it: this benchmark needs guidance")


def _rows(name: str, rounds: dict[str, list[float]], calls: dict[str, float]) -> list[Result]:
    first = {"ours": rounds[OURS], "diffusers": rounds[THEIRS]}
    rows = [ratio(f"{name}, against diffusers", first, "images/s", 1.0, {"calls a step": calls[OURS]})]
    for side, rates in rounds.items():
        if side not in (OURS, THEIRS):
            facts = {"calls a step": calls[side]} if side in calls else {}
            rows.append(ratio(f"{name}, {side}", {side: rates, OURS: rounds[OURS]}, "images/s", None, facts))
    return rows


def make_task(config: RunConfig, device: torch.device) -> Task:
    """Build a model with initial weights, with noise images as sources.

    Raises:
        UserError: the method does not denoise.
    """
    model, settings = _build_model(config, device), config.sampling
    count, side = config.evaluation.images, config.data.target_size
    batch = noise_batches(with_batch(config, count), device)[0]
    posed = batch.target_pose.shape[1] > 0
    pose = batch.target_pose if posed else None
    sources = Sources(source_input(batch.source), batch.present, batch.source_pose if posed else None)
    generator = torch.Generator(device).manual_seed(config.seed)
    with torch.no_grad():
        condition = model.condition(sources, pose, None, None)
        without = model.unguided(sources, pose, settings.guide, settings.guided_sections, None)
    plan = reverse_steps(
        model.process.abar, method=settings.method, steps=settings.steps, variance=settings.variance, eta=settings.eta
    )
    start = torch.randn(count, 3, side, side, generator=generator, device=device)
    return Task(model, condition, without, plan, start, settings, settings.guidance, config.seed + 1)


def with_batch(config: RunConfig, count: int) -> RunConfig:
    """Set the batch to `count` pairs on one worker."""
    train = config.train.model_copy(update={"global_batch": count, "micro_batch": None})
    return config.model_copy(update={"train": train, "scale": config.scale.model_copy(update={"workers": 1})})


def _build_model(config: RunConfig, device: torch.device) -> DiffusionMethod:
    model = build_objective(config).model
    if not isinstance(model, DiffusionMethod):
        raise UserError("method", config.method, "soda, unconditional, palette", "choose one that denoises")
    model.precision = "fp32"
    return model.to(device).eval().requires_grad_(False)


def draw_ours(task: Task) -> Tensor:
    """Sample with `Method.sample`: float32 [B, 3, r, r]."""
    generator, x = task.generator(), task.start
    recipe = Recipe(
        conditions=[task.condition],
        without=task.without,
        w=task.w,
        plan=task.plan,
        noise=lambda _: torch.randn(task.start.shape, generator=generator, device=generator.device),
        choose=lambda _: 0,
    )
    for state in task.model.sample(recipe, task.start):
        x = state.x
    return x


@torch.no_grad()
def draw_theirs(task: Task) -> Tensor:
    """Sample with guidance in a plain loop over a diffusers scheduler: float32 [B, 3, r, r].

    If a step reads eps at a noise level other than its own (`reverse_steps`), eps is converted to keep x0 unchanged.
    """
    generator, x = task.generator(), task.start
    scheduler, numbers, options = _scheduler(task)
    both = join(task.without, task.condition)
    for step, number in zip(task.plan, numbers, strict=True):
        t = torch.full((2 * len(x),), step.read_t, dtype=torch.int64, device=x.device)
        plain, conditional = task.model.denoise(torch.cat([x, x]), t, both).chunk(2)
        eps = _at_own_level(step, x, plain + task.w * (conditional - plain))
        x = scheduler.step(eps, number, x, generator=generator, **options).prev_sample
    return x


def _at_own_level(step: ReverseStep, x: Tensor, eps: Tensor) -> Tensor:
    if step.read_t == step.t:
        return eps
    x0 = (x - math.sqrt(1 - step.read_abar) * eps) / math.sqrt(step.read_abar)
    return (x - math.sqrt(step.abar) * x0) / math.sqrt(1 - step.abar)


def _scheduler(task: Task) -> tuple[Any, list[int], dict[str, Any]]:
    """Create a diffusers scheduler with our steps and abar; return it with its timesteps and arguments of its step.

    Its DDIM strides differently, so its table holds only the levels of our steps.
    """
    try:
        from diffusers import DDIMScheduler, DDPMScheduler
    except ImportError:
        raise UserError("diffusers", "not installed", "the package diffusers", "pip install diffusers") from None
    abar, steps = task.model.process.abar.cpu(), [step.t for step in task.plan]
    ddim = task.settings.method == "ddim"
    table = abar[steps[::-1]] if ddim else abar
    betas = (1 - table / torch.cat([table.new_ones(1), table[:-1]])).tolist()
    if ddim:
        scheduler: Any = DDIMScheduler(len(table), trained_betas=betas, clip_sample=True)
        scheduler.set_timesteps(len(table))
    else:
        variance = f"fixed_{task.settings.variance}"
        scheduler = DDPMScheduler(len(table), trained_betas=betas, clip_sample=True, variance_type=variance)
        scheduler.set_timesteps(timesteps=steps)
    scheduler.alphas_cumprod = table
    options = {"eta": task.settings.eta, "use_clipped_model_output": True} if ddim else {}
    return scheduler, scheduler.timesteps.tolist(), options


def count_calls(model: DiffusionMethod, draw: Callable[[], Tensor]) -> int:
    """Count the denoiser calls of `draw`."""
    calls = []
    handle = model.denoiser.register_forward_hook(lambda *_: calls.append(1))
    try:
        draw()
    finally:
        handle.remove()
    return len(calls)


def _in_precision(task: Task, precision: Precision) -> Tensor:
    before, task.model.precision = task.model.precision, precision
    try:
        return draw_ours(task)
    finally:
        task.model.precision = before


def _side(draw: Callable[[], Tensor], device: torch.device, count: int) -> Side:
    def rate(_: int) -> float:
        with tf32(False):
            wait(device)
            start = time.perf_counter()
            draw()
            wait(device)
            return count / (time.perf_counter() - start)

    return rate
