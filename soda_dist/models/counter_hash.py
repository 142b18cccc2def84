"""Counter-based random bits as tensor arithmetic: a function of their address, with the same integers on every device.

Strong 64-bit hashes, a few per sample, seed 32-bit cells, one per random number, which a compiler can fuse into what
uses them. Compiled code calls the hashes as opaque ops, since Triton rejects their 64-bit constants.
"""

import math

import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15
WIDTH = 64
"""Cells of a row."""
_CACHED = 1 << 17
"""Cells that a CPU mixes at a time: all of a micro-batch would leave its cache between two operations."""


def signed(word: int) -> int:
    """Return the int64 with the bits of `word` modulo 2**64."""
    return (word + (1 << 63)) % (1 << 64) - (1 << 63)


def mixed(x: Tensor, add: int = 0) -> Tensor:
    """Apply SplitMix64's finaliser to x + add, of int64 of any shape, with the wrap-around of unsigned words."""
    return (_opaque_mixed if torch.compiler.is_compiling() else _mixed)(x, signed(add))


def words(streams: Tensor, number: int, count: int) -> Tensor:
    """Hash each stream, int64 [B], into `count` uniform words, int32 [B, count]; other numbers give other words."""
    return (_opaque_words if torch.compiler.is_compiling() else _words)(streams, number, count)


def cells(streams: Tensor, number: int, rows: int) -> Tensor:
    """Return int32 [B, rows, WIDTH]: sums of a row's and a column's word, for the caller to mix; `rows` is even.

    That takes fewer passes than a hash of each cell, and memory traffic is the cost.
    """
    found = words(streams, number, WIDTH + rows)
    return found[:, WIDTH:, None] + found[:, None, :WIDTH]


def normals(streams: Tensor, number: int, count: int) -> Tensor:
    """Draw standard normal float32 [B, count] by the transform of Box and Muller; at most 6.7 in absolute value.

    The first half of the numbers are the cosines, the second half the sines of the same angles.
    """
    rows = -(-count // (2 * WIDTH)) * 2
    drawn = torch.empty(len(streams), 2, rows // 2 * WIDTH, device=streams.device)
    whole = streams.device.type != "cpu" or torch.compiler.is_compiling()
    block = max(1, len(streams) if whole else _CACHED // max(1, rows * WIDTH))
    for part, out in zip(streams.split(block), drawn.split(block), strict=True):
        _fill_normals(out, cells(part, number, rows))
    return drawn.flatten(1)[:, :count]


def _fill_normals(out: Tensor, bits: Tensor) -> None:
    """Fill float32 [B, 2, n] from `cells`, int32 with as many elements, which are overwritten."""
    # Two rounds, with logical shifts: in one, cells of two rows, which differ by a constant, would stay alike.
    bits ^= (bits >> 16).bitwise_and_(0xFFFF)
    bits *= 0x7FEB352D
    bits ^= (bits >> 15).bitwise_and_(0x1FFFF)
    bits *= -0x7B935975
    magnitude, angle = bits.view(out.shape).unbind(1)
    # 31 bits and a half, as a float: near zero, where the tail is, none of the bits is rounded off.
    radius = (magnitude & 0x7FFFFFFF).float().add_(0.5).mul_(2.0**-31).log_().mul_(-2).sqrt_()
    radians = angle.float().mul_(math.pi * 2.0**-31)
    out[:, 0] = radius * radians.cos()
    out[:, 1] = radius * radians.sin()


def _mixed(x: Tensor, add: int) -> Tensor:
    x = x + add
    x = (x ^ ((x >> 30) & (1 << 34) - 1)) * signed(0xBF58476D1CE4E5B9)
    x = (x ^ ((x >> 27) & (1 << 37) - 1)) * signed(0x94D049BB133111EB)
    return x ^ ((x >> 31) & (1 << 33) - 1)


def _words(streams: Tensor, number: int, count: int) -> Tensor:
    counters = torch.arange(1, -(-count // 2) + 1, device=streams.device) * signed(0xC2B2AE3D27D4EB4F)
    hashed = _mixed(streams[:, None] + counters, signed(GOLDEN * (number + 1)))
    return hashed.view(torch.int32)[:, :count]


@torch.library.custom_op("soda_dist::mixed", mutates_args=())
def _opaque_mixed(x: Tensor, add: int) -> Tensor:
    return _mixed(x, add)


@_opaque_mixed.register_fake
def _(x: Tensor, add: int) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("soda_dist::words", mutates_args=())
def _opaque_words(streams: Tensor, number: int, count: int) -> Tensor:
    return _words(streams, number, count).contiguous()


@_opaque_words.register_fake
def _(streams: Tensor, number: int, count: int) -> Tensor:
    return streams.new_empty(len(streams), count, dtype=torch.int32)
