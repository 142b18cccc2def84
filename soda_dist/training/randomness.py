"""The random numbers of a training step, addressed by (seed, sample's position in the run).

A sample's timestep, noises, masks and dropout seeds are drawn from a generator of its own. So neither the number of
workers nor the micro-batch decides what a sample meets, and nothing about randomness has to be stored in a checkpoint.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_MASK = (1 << 64) - 1


def mix64(*words: int) -> int:
    """An unsigned 64-bit hash of whole numbers (the finaliser of SplitMix64, chained)."""
    state = 0
    for word in words:
        state = (state + (word & _MASK) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


@dataclass(frozen=True)
class Draws:
    """One micro-batch's random numbers: those of each sample."""

    t: Tensor
    """[B] int64, index of the timestep in 0..T-1."""
    eps: Tensor
    """[B, 3, r, r] float32, noise of the target."""
    source_noise: Tensor | None
    """[B, S, 3, s, s] float32, noise of the sources at unit scale; None if no source gets noise."""
    keep: Tensor
    """[B, sections] bool: False where the section of z is zeroed."""
    pose_keep: Tensor
    """[B] bool: False where the poses are masked."""
    seeds: Tensor
    """[B] int64, seeds of the dropout masks."""


def draw(
    seed: int,
    index: Tensor,
    *,
    timesteps: int,
    sources: int,
    source_size: int,
    target_size: int,
    sections: int,
    rates: tuple[float, float, float],
    device: torch.device | None = None,
) -> Draws:
    """Random numbers for the samples at positions `index` ([B] int64) of the run with `seed`.

    `rates` are those of layer, guidance and pose masking (sections 3.2.1 and 3.3): a section is zeroed by itself with
    the first, the whole of z with the second, the poses with the third. `sources` are the views S that get noise.
    The numbers are made on `device` (None = that of `index`). An index on the CPU spares the GPU a wait.
    """
    device = index.device if device is None else device
    layer_rate, guidance_rate, pose_rate = rates
    positions = index.tolist()
    generator = torch.Generator(device=device)
    uniform = torch.empty(len(positions), sections + 2, device=device)
    eps = torch.empty(len(positions), 3, target_size, target_size, device=device)
    source = torch.empty(len(positions), sources, 3, source_size, source_size, device=device)
    for row, position in enumerate(positions):  # few launches per row: on a GPU they are the cost
        generator.manual_seed(mix64(seed, position) >> 1)
        torch.rand(sections + 2, generator=generator, out=uniform[row])
        torch.randn(3, target_size, target_size, generator=generator, out=eps[row])
        if sources:
            torch.randn(sources, 3, source_size, source_size, generator=generator, out=source[row])
    pose_keep = [mix64(seed, position, 2) >= pose_rate * 2.0**64 for position in positions]
    seeds = [mix64(seed, position, 1) >> 1 for position in positions]
    return Draws(
        t=(uniform[:, 0] * timesteps).long().clamp_(max=timesteps - 1),
        eps=eps,
        source_noise=source if sources else None,
        keep=(uniform[:, 2:] >= layer_rate) & (uniform[:, 1:2] >= guidance_rate),
        pose_keep=torch.tensor(pose_keep, device=device),
        seeds=torch.tensor(seeds, device=device),
    )
