"""Random numbers of a training step: a hash of (seed, position in the run, purpose), for a micro-batch at once.

They depend on neither the number of workers nor the micro-batch, and checkpoints store no random state. Integers and
masks are the same on every device, noise up to the rounding of its logarithms and sines.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from soda_dist.models.counter_hash import GOLDEN, mixed, normals, words

_MASK = (1 << 64) - 1
_DROPOUT, _DRAWS = 1, 2
"""Purposes of a sample's streams."""
_SALT = 3
"""Purpose of the seed after a rollback."""
_SCALARS, _TARGET, _SOURCES = range(3)
"""Numbers of the words within the stream of draws."""
_BITS = 31


def mix64(*words: int) -> int:
    """Hash integers to an unsigned 64-bit integer (the finaliser of SplitMix64, chained)."""
    state = 0
    for word in words:
        state = (state + (word & _MASK) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def salted(seed: int, salts: Sequence[tuple[int, int]], step: int) -> int:
    """Return the seed of the update after `step` in a run that has gone back: its newest salt by then decides.

    Args:
        salts: of each rollback, the step that the run went back to, and its salt, from 1 on.
    """
    salt = max((salt for since, salt in salts if since <= step), default=0)
    return mix64(seed, _SALT, salt) if salt else seed


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
    """[B] int64, seeds of the dropout masks, of any sign."""


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
    `sources`: number of views that get noise. `device`: None = that of `index`.
    """
    index = index.to(index.device if device is None else device, non_blocking=True)
    own = mixed(index, mix64(seed) + GOLDEN)  # mix64(seed, position)
    streams = mixed(own, _DRAWS + GOLDEN)
    uniform = (words(streams, _SCALARS, 3 + sections) & (1 << _BITS) - 1).long()
    layer, guidance, pose = (round(rate * 2**_BITS) for rate in rates)
    target = normals(streams, _TARGET, 3 * target_size**2)
    source = normals(streams, _SOURCES, sources * 3 * source_size**2) if sources else None
    return Draws(
        t=(uniform[:, 0] * timesteps) >> _BITS,
        eps=target.reshape(-1, 3, target_size, target_size),
        source_noise=None if source is None else source.reshape(-1, sources, 3, source_size, source_size),
        keep=(uniform[:, 3:] >= layer) & (uniform[:, 1:2] >= guidance),
        pose_keep=uniform[:, 2] >= pose,
        seeds=mixed(own, _DROPOUT + GOLDEN),
    )
