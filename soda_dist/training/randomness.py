"""Random numbers of a training step, seeded per sample by (seed, position in the run).

They depend on neither the number of workers nor the micro-batch, and checkpoints store no random state.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_MASK = (1 << 64) - 1


def mix64(*words: int) -> int:
    """Hash integers to an unsigned 64-bit integer (the finaliser of SplitMix64, chained)."""
    state = 0
    for word in words:
        state = (state + (word & _MASK) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


@dataclass(frozen=True)
class Draws:
    """Random numbers of a micro-batch, per sample."""

    t: Tensor
    """[B] int64, timestep indices in 0..T-1."""
    eps: Tensor
    """[B, 3, r, r] float32, noise of the target."""
    source_noise: Tensor | None
    """[B, S, 3, s, s] float32, noise of the sources with unit variance; None if sources get no noise."""
    keep: Tensor
    """[B, sections] bool; False = the section of z is zeroed."""
    pose_keep: Tensor
    """[B] bool; False = the poses are masked."""
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
    """Draw the random numbers of the samples at positions `index` ([B] int64) of a run.

    `rates`: probabilities of masking a single section, all of z (guidance) and the poses (sections 3.2.1 and 3.3).
    `sources`: number of views that get noise. `device`: None = that of `index`, which on the CPU avoids a GPU sync.
    """
    device = index.device if device is None else device
    layer_rate, guidance_rate, pose_rate = rates
    positions = index.tolist()
    generator = torch.Generator(device=device)
    uniform = torch.empty(len(positions), sections + 2, device=device)
    eps = torch.empty(len(positions), 3, target_size, target_size, device=device)
    source = torch.empty(len(positions), sources, 3, source_size, source_size, device=device)
    for row, position in enumerate(positions):  # few launches per row: they dominate the cost on a GPU
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
