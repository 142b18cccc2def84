"""Layers of both networks: addressed dropout, group norm, attention, initialisation."""

import math
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soda_dist.models.counter_hash import WIDTH, cells, mixed

_LEVELS = 1 << 16
_TRUNCATED_STD = 0.87962566103423978
"""Standard deviation of a unit normal truncated at two."""


class _Active(threading.local):
    """The streams of the samples, int64 [B], within `addressed`; torch.compile reads a thread's attributes."""

    def __init__(self) -> None:  # in each thread: the compiler's guards want attributes of the instance
        self.streams: Tensor | None = None


_ACTIVE = _Active()


@contextmanager
def addressed(seeds: Tensor) -> Iterator[None]:
    """Draw each sample's dropout and drop path masks from its seed, int64 [B], within this context.

    The context belongs to one thread: a recomputation that autograd starts in another does not see it.

    Raises:
        ValueError: seeds of another dtype or shape.
    """
    if seeds.dtype != torch.int64 or seeds.ndim != 1:
        raise ValueError(f"seeds: got {seeds.dtype} {list(seeds.shape)}; allowed: int64 [B]")
    before, _ACTIVE.streams = _ACTIVE.streams, mixed(seeds)
    try:
        yield
    finally:
        _ACTIVE.streams = before


@contextmanager
def addressed_apart(rows: Tensor, places: Tensor) -> Iterator[None]:
    """Within `addressed`, seed a batch of views: view i gets the seed of sample rows[i], told apart by places[i].

    Args:
        rows: int64 [V], the sample of each view.
        places: int64 [V], its index among the sample's views; place 0 has the sample's own stream.
    """
    before = _ACTIVE.streams
    if before is None:
        yield
        return
    own = before.to(rows.device)[rows]
    _ACTIVE.streams = torch.where(places > 0, mixed(own + places), own)
    try:
        yield
    finally:
        _ACTIVE.streams = before


def number_modules(model: nn.Module) -> int:
    """Number the addressed modules of `model` in the order of `model.modules()`; return their count."""
    modules = [m for m in model.modules() if isinstance(m, AddressedDropout | AddressedDropPath)]
    for number, module in enumerate(modules):
        module.number = number
    return len(modules)


class AddressedDropout(nn.Module):
    """Dropout whose mask is a pure function of (sample's seed, this module's number, element's index in the sample).

    So it depends neither on the device nor on the split of a batch. Without `addressed` it is torch's own dropout.
    `rate` in [0, 1) is the probability that an element is zeroed, rounded to a multiple of 2**-16.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.number: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Drop elements of float [B, ...]; kept ones are divided by the probability of keeping."""
        if not self.training or self.rate == 0:
            return x
        streams = _ACTIVE.streams
        if streams is None:
            return F.dropout(x, self.rate)
        return _dropped(x, streams, self.rate, self.number, x[0].numel())

    def extra_repr(self) -> str:
        return f"rate={self.rate}, number={self.number}"


class AddressedDropPath(nn.Module):
    """Stochastic depth (appendix C): zeroes a sample's whole branch at `rate`; addressed like `AddressedDropout`."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.number: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Drop branches of float [B, ...]; kept ones are divided by the probability of keeping."""
        if not self.training or self.rate == 0:
            return x
        streams = _ACTIVE.streams
        if streams is None:
            return x * F.dropout(x.new_ones((len(x),) + (1,) * (x.ndim - 1)), self.rate)
        return _dropped(x, streams, self.rate, self.number, 1)

    def extra_repr(self) -> str:
        return f"rate={self.rate}, number={self.number}"


def dropped(x: Tensor, seeds: Tensor, *, rate: float, number: int) -> Tensor:
    """Apply `AddressedDropout` number `number` under `addressed(seeds)` to `x` [B, ...]; B may be 0."""
    if rate == 0 or len(x) == 0:
        return x
    return _dropped(x, mixed(seeds), rate, number, x[0].numel())


def _dropped(x: Tensor, streams: Tensor, rate: float, number: int | None, draws: int) -> Tensor:
    """Multiply `x` [B, ...] by an addressed mask of `draws` draws per sample: one per element, or one for all."""
    if number is None:
        raise RuntimeError("addressed module without a number; call number_modules(model) once it is built")
    if len(streams) != len(x):
        raise ValueError(f"addressed: got {len(streams)} seeds with a batch of {len(x)}; allowed: one per sample")
    dropped = min(round(rate * _LEVELS), _LEVELS - 1)
    keep = _kept(streams.to(x.device), number, draws, dropped - _LEVELS // 2)
    shape = x.shape if draws > 1 else (len(x),) + (1,) * (x.ndim - 1)
    # Scale separately: folded into a bf16 mask, the factor would be off by 0.2%.
    return x * (_LEVELS / (_LEVELS - dropped)) * keep.reshape(shape).to(x.dtype)


def _kept(streams: Tensor, number: int, count: int, threshold: int) -> Tensor:
    """Draw uniform int16 numbers, the halves of mixed cells: whether each is >= threshold, [B, count] of 0 and 1."""
    rows = -(-count // (2 * WIDTH))
    bits = cells(streams, number, rows + rows % 2)
    bits ^= bits >> 16
    bits *= -2048144789
    if not torch.compiler.is_compiling():
        return bits.view(torch.int16).flatten(1)[:, :count].ge_(threshold)  # a compiler cannot fuse the view
    limit = threshold << 16  # compares each half where it lies: lower bits do not change the order
    return torch.stack([(bits << 16) >= limit, bits >= limit], -1).flatten(1)[:, :count]


def autocast(device: torch.device, *, enabled: bool) -> AbstractContextManager[Any]:
    """Autocast to bf16 if enabled; do nothing on the meta device, which has no autocast."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def group_count(channels: int) -> int:
    """Return the largest power of two up to 32 that divides `channels`, halved if groups would be single channels.

    Our reading: the paper says only group norm; groups of one channel would be instance norm.
    """
    groups = math.gcd(32, channels)
    return groups // 2 if groups == channels and groups > 1 else groups


def group_norm(x: Tensor, groups: int, scale: Tensor, shift: Tensor) -> Tensor:
    """Compute scale * GroupNorm(x) + shift, with a scale and a shift per sample and channel.

    Samples become further groups, so the kernel's own affine does it all in one pass. The result has the dtype of `x`,
    under autocast too; the kernel's statistics are float32.

    Args:
        x: [B, C, h, w] float.
        groups: a divisor of C.
        scale, shift: [B, C].
    """
    b, c, h, w = x.shape
    with autocast(x.device, enabled=False):
        weight, bias = scale.reshape(-1).to(x.dtype), shift.reshape(-1).to(x.dtype)
        return F.group_norm(x.reshape(1, b * c, h, w), b * groups, weight, bias).view(x.shape)


class GroupNorm(nn.GroupNorm):
    """Group norm over `group_count(channels)` groups, then ReLU if `act`; keeps its input's dtype under autocast."""

    def __init__(self, channels: int, act: bool) -> None:
        super().__init__(group_count(channels), channels)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """Normalise float [B, C, h, w], shape and dtype kept."""
        with autocast(x.device, enabled=False):
            x = F.group_norm(x.contiguous(), self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)
        return F.relu(x, inplace=True) if self.act else x


class SelfAttention(nn.Module):
    """Self attention over the grid (appendix C): (x + attention(GroupNorm(x))) / sqrt 2.

    `head_dim`, the width of a head, divides `channels`.
    """

    def __init__(self, *, channels: int, head_dim: int) -> None:
        super().__init__()
        if channels % head_dim:
            raise ValueError(f"head_dim: got {head_dim} with {channels} channels; allowed: divisors of the channels")
        self.head_dim = head_dim
        self.norm = GroupNorm(channels, act=False)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Attend: float [B, C, h, w] to the same shape."""
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).unflatten(2, (3, -1, self.head_dim)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return rescaled(x, self.out(mixed).transpose(1, 2).reshape(x.shape))


def rescaled(x: Tensor, branch: Tensor) -> Tensor:
    """Return (x + branch) / sqrt 2 (appendix C), which keeps the variance of two independent terms."""
    return (x + branch) * math.sqrt(0.5)


@torch.no_grad()
def lecun_normal_(weight: Tensor) -> Tensor:
    """Fill [out, in, ...] by JAX's truncated normal (appendix C): variance 1 / fan_in after truncation at two std."""
    std = weight[0].numel() ** -0.5 / _TRUNCATED_STD
    return nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
