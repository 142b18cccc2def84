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
    """One micro-batch's random numbers: what each sample meets in the step."""

    t: Tensor
    """[B] int64, index of the timestep in 0..T-1."""
    eps: Tensor
    """[B, 3, r, r] float32, noise of the target."""
    source_noise: Tensor | None
    """[B, S, 3, s, s] float32, noise of the sources at unit scale; none where no source was asked for."""
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
) -> Draws:
    """Random numbers for the samples at positions `index` ([B] int64) of the run with `seed`.

    `rates` are those of layer, guidance and pose masking (sections 3.2.1 and 3.3): a section is zeroed by itself with
    the first, the whole of z with the second, the poses with the third. `sources` are the views S that get noise.
    """
    device = index.device
    layer_rate, guidance_rate, pose_rate = rates
    generator = torch.Generator(device=device)
    t, eps, source, keep, pose_keep, seeds = [], [], [], [], [], []
    for position in index.tolist():
        address = mix64(seed, position)
        generator.manual_seed(address >> 1)
        uniform = torch.rand(sections + 2, generator=generator, device=device)
        eps.append(torch.randn(3, target_size, target_size, generator=generator, device=device))
        if sources:
            source.append(torch.randn(sources, 3, source_size, source_size, generator=generator, device=device))
        t.append((uniform[0] * timesteps).long())
        keep.append((uniform[2:] >= layer_rate) & (uniform[1] >= guidance_rate))
        pose_keep.append(mix64(seed, position, 2) >= pose_rate * 2.0**64)
        seeds.append(mix64(seed, position, 1) >> 1)
    return Draws(
        t=torch.stack(t).clamp_(max=timesteps - 1),
        eps=torch.stack(eps),
        source_noise=torch.stack(source) if sources else None,
        keep=torch.stack(keep),
        pose_keep=torch.tensor(pose_keep, device=device),
        seeds=torch.tensor(seeds, device=device),
    )
