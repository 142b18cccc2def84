"""Layers of both networks: addressed dropout, norms over groups or workers, attention, initialisation."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_STREAMS: ContextVar[Tensor | None] = ContextVar("streams", default=None)
_LEVELS = 1 << 16
_WIDTH = 64
_TRUNCATED_STD = 0.87962566103423978
"""Standard deviation of a unit normal truncated at two."""


@contextmanager
def addressed(seeds: Tensor) -> Iterator[None]:
    """Draw each sample's dropout and drop path masks from its seed, int64 [B], within this context.

    The context belongs to one thread: a recomputation that autograd starts in another does not see it.

    Raises:
        ValueError: seeds of another dtype or shape.
    """
    if seeds.dtype != torch.int64 or seeds.ndim != 1:
        raise ValueError(f"seeds: got {seeds.dtype} {list(seeds.shape)}; allowed: int64 [B]")
    token = _STREAMS.set(_mixed(seeds))
    try:
        yield
    finally:
        _STREAMS.reset(token)


@contextmanager
def addressed_apart(rows: Tensor, places: Tensor) -> Iterator[None]:
    """Within `addressed`, seed a batch of views: view i gets the seed of sample rows[i], told apart by places[i].

    Args:
        rows: int64 [V], the sample of each view.
        places: int64 [V], its index among the sample's views; place 0 has the sample's own stream.
    """
    streams = _STREAMS.get()
    if streams is None:
        yield
        return
    own = streams.to(rows.device)[rows]
    token = _STREAMS.set(torch.where(places > 0, _mixed(own + places), own))
    try:
        yield
    finally:
        _STREAMS.reset(token)


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
        streams = _STREAMS.get()
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
        streams = _STREAMS.get()
        if streams is None:
            return x * F.dropout(x.new_ones((len(x),) + (1,) * (x.ndim - 1)), self.rate)
        return _dropped(x, streams, self.rate, self.number, 1)

    def extra_repr(self) -> str:
        return f"rate={self.rate}, number={self.number}"


def dropped(x: Tensor, seeds: Tensor, *, rate: float, number: int) -> Tensor:
    """Apply `AddressedDropout` number `number` under `addressed(seeds)` to `x` [B, ...]; B may be 0."""
    if rate == 0 or len(x) == 0:
        return x
    return _dropped(x, _mixed(seeds), rate, number, x[0].numel())


def _dropped(x: Tensor, streams: Tensor, rate: float, number: int | None, draws: int) -> Tensor:
    """Multiply `x` [B, ...] by an addressed mask of `draws` draws per sample: one per element, or one for all."""
    if number is None:
        raise RuntimeError("addressed module without a number; call number_modules(model) once it is built")
    if len(streams) != len(x):
        raise ValueError(f"addressed: got {len(streams)} seeds with a batch of {len(x)}; allowed: one per sample")
    dropped = min(round(rate * _LEVELS), _LEVELS - 1)
    lanes = _opaque_lanes if torch.compiler.is_compiling() else _lanes
    keep = lanes(streams.to(x.device), number, draws).ge_(dropped - _LEVELS // 2)
    shape = x.shape if draws > 1 else (len(x),) + (1,) * (x.ndim - 1)
    # Scale separately: folded into a bf16 mask, the factor would be off by 0.2%.
    return x * (_LEVELS / (_LEVELS - dropped)) * keep.reshape(shape)


def _lanes(streams: Tensor, number: int, count: int) -> Tensor:
    """Draw uniform int16 [B, count]: the halves of 32-bit words in rows of 64.

    Each row and each column has a word of a strong 64-bit hash; a cell is their sum, mixed once more. That takes fewer
    passes over the cells than a hash of each, and in place, since memory traffic is the cost.
    """
    rows = -(-count // (2 * _WIDTH))
    rows += rows % 2
    keys = streams + _signed(0x9E3779B97F4A7C15 * (number + 1))
    counters = torch.arange(1, (rows + _WIDTH) // 2 + 1, device=streams.device) * _signed(0xC2B2AE3D27D4EB4F)
    words = _mixed(keys[:, None] + counters).view(torch.int32)
    cells = words[:, _WIDTH:, None] + words[:, None, :_WIDTH]
    cells ^= cells >> 16
    cells *= -2048144789
    return cells.view(torch.int16).flatten(1)[:, :count]


@torch.library.custom_op("soda_dist::lanes", mutates_args=())
def _opaque_lanes(streams: Tensor, number: int, count: int) -> Tensor:
    """Hide `_lanes` from torch.compile: Triton rejects its 64-bit constants."""
    return _lanes(streams, number, count).contiguous()


@_opaque_lanes.register_fake
def _(streams: Tensor, number: int, count: int) -> Tensor:
    return streams.new_empty(len(streams), count, dtype=torch.int16)


def _mixed(x: Tensor) -> Tensor:
    """Apply SplitMix64's finaliser to int64, with the wrap-around and logical shifts of unsigned words."""
    x = (x ^ ((x >> 30) & (1 << 34) - 1)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ ((x >> 27) & (1 << 37) - 1)) * _signed(0x94D049BB133111EB)
    return x ^ ((x >> 31) & (1 << 33) - 1)


def _signed(word: int) -> int:
    """Return the int64 with the bits of `word` modulo 2**64."""
    return (word + (1 << 63)) % (1 << 64) - (1 << 63)


Reduce = Callable[[Tensor], Tensor]
"""Differentiable sum of a tensor over the workers; batch norm passes float64 [2 C + 1]."""


class SyncedBatchNormAct2d(nn.BatchNorm2d):
    """Batch norm, then ReLU; with `reduce`, statistics are over the batches of all workers.

    Without `reduce` it is torch's. Running statistics are torch's too (unbiased variance, momentum 0.1); with `reduce`
    they are equal on all workers.
    """

    reduce: Reduce | None = None

    def __init__(self, channels: int) -> None:
        super().__init__(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise float [B, C, h, w], shape and dtype kept; needs two values per channel over all workers."""
        synchronized = self.training and self.reduce is not None
        return F.relu(self._normalized(x) if synchronized else super().forward(x), inplace=True)

    def _normalized(self, x: Tensor) -> Tensor:
        assert self.reduce is not None
        sums = _ChannelSums.apply(x).flatten()
        total = self.reduce(torch.cat([sums, sums.new_full((1,), x.numel() / x.shape[1])]))
        count = total[-1].detach()
        mean, square = (total[:-1] / count).view(2, -1)
        variance = (square - mean.square()).clamp_min(0)
        self._track(mean.detach(), variance.detach(), count)
        deviation, mean, variance = torch.rsqrt(variance + self.eps).float(), mean.float(), variance.float()
        # The kernel treats the statistics as constants. These factors leave its result unchanged and carry the
        # gradients of the statistics, with fewer passes than an elementwise formula.
        weight = self.weight * (deviation / deviation.detach())
        bias = self.bias + (mean.detach() - mean) * deviation * self.weight
        return F.batch_norm(x, mean.detach(), variance.detach(), weight, bias, False, 0.0, self.eps)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        momentum = 0.1 if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), momentum)
        self.running_var.lerp_((variance * count / (count - 1).clamp_min(1)).to(self.running_var), momentum)
        self.num_batches_tracked.add_(1)


class _ChannelSums(torch.autograd.Function):
    """Sums and sums of squares of [B, C, h, w], float64 [2, C]; saves `x` only, not its float32 copy.

    Squares are summed around the mean in float32 and moved to zero in float64, so that a variance much smaller than the
    squared mean survives the later subtraction.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        wide, count = x.float(), x.numel() // x.shape[1]
        mean = wide.mean((0, 2, 3), keepdim=True)
        squares = (wide - mean).square().sum((0, 2, 3)).double()
        mean = mean.flatten().double()
        return torch.stack([count * mean, squares + count * mean.square()])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        first, second = gradient[:, None, :, None, None].float()
        return torch.addcmul(first, x.float(), second, value=2).to(x.dtype)


def synchronize_norms(model: nn.Module, reduce: Reduce | None) -> int:
    """Set the sum over workers in each batch norm of `model` (None = no sum); return the number of norms."""
    norms = [m for m in model.modules() if isinstance(m, SyncedBatchNormAct2d)]
    for norm in norms:
        norm.reduce = reduce
    return len(norms)


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


@torch.no_grad()
def settle_norms(module: nn.Module, batches: Sequence[tuple[Tensor | None, ...]]) -> None:
    """Set the batch norms of a module in eval mode to the mean statistics of `batches`, its arguments call by call.

    Everything else stays in eval mode. A module without batch norms is unchanged.
    """
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for number, batch in enumerate(batches if norms else ()):
        for norm in norms:
            norm.train()
            norm.momentum = 1.0 / (number + 1)  # a running mean over the batches
        module(*batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum
