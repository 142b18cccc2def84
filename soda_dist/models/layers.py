"""Layers that both networks share: addressed dropout, norms over groups or workers, attention, initialisation."""

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
    """Within, dropout and drop path take each sample's mask from its seed: int64 [B], on the activations' device.

    Seen by the thread that entered it alone; so a recomputation that autograd starts in another thread does not see it.

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
    """Within `addressed`, for a batch of views: view i has the seed of sample rows[i], told apart by places[i].

    Args:
        rows: int64 [V], each view's sample.
        places: int64 [V], its place among the sample's views; place 0 has the sample's own stream.
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

    So it depends neither on the device nor on the split of a batch. Without `addressed` it is torch's own dropout. The
    rate is realised to 2**-16. On a CPU it takes a third of `F.dropout`'s time or less, up to four million elements.

    Args:
        rate: probability that an element is zeroed, in [0, 1).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.number: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[B, ...] float to the same; kept elements are divided by the probability of keeping."""
        if not self.training or self.rate == 0:
            return x
        streams = _STREAMS.get()
        if streams is None:
            return F.dropout(x, self.rate)
        return _dropped(x, streams, self.rate, self.number, x[0].numel())

    def extra_repr(self) -> str:
        return f"rate={self.rate}, number={self.number}"


class AddressedDropPath(nn.Module):
    """Stochastic depth (appendix C): zeroes a sample's whole residual branch; addressed as `AddressedDropout` is.

    Args:
        rate: probability that a sample's branch is zeroed, in [0, 1).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.number: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[B, ...] float to the same; kept branches are divided by the probability of keeping."""
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
    """`x` [B, ...] times an addressed mask of `draws` draws a sample (all of its elements, or one for all)."""
    if number is None:
        raise RuntimeError("an addressed module has no number: call number_modules(model) once it is built")
    if len(streams) != len(x):
        raise ValueError(f"addressed: got {len(streams)} seeds with a batch of {len(x)}; allowed: one a sample")
    dropped = min(round(rate * _LEVELS), _LEVELS - 1)
    lanes = _opaque_lanes if torch.compiler.is_compiling() else _lanes
    keep = lanes(streams.to(x.device), number, draws).ge_(dropped - _LEVELS // 2)
    shape = x.shape if draws > 1 else (len(x),) + (1,) * (x.ndim - 1)
    # The scale is a multiplication of its own: folded into a bf16 mask it would be off by 0.2%.
    return x * (_LEVELS / (_LEVELS - dropped)) * keep.reshape(shape)


def _lanes(streams: Tensor, number: int, count: int) -> Tensor:
    """int16 [B, count], uniform: the halves of 32-bit words in rows of 64.

    Each row and each column has a word of a strong 64-bit hash. A cell is the sum of the two, mixed once more: four
    passes over the cells, where a hash of each would take ten. In place, since passes over memory are the cost.
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
    """`_lanes` for torch.compile, which does not look inside: Triton refuses its constants of 64 bits."""
    return _lanes(streams, number, count).contiguous()


@_opaque_lanes.register_fake
def _(streams: Tensor, number: int, count: int) -> Tensor:
    return streams.new_empty(len(streams), count, dtype=torch.int16)


def _mixed(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64 on int64, with the wrap-around and the logical shifts of unsigned words."""
    x = (x ^ ((x >> 30) & (1 << 34) - 1)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ ((x >> 27) & (1 << 37) - 1)) * _signed(0x94D049BB133111EB)
    return x ^ ((x >> 31) & (1 << 33) - 1)


def _signed(word: int) -> int:
    """The int64 with the bits of `word` modulo 2**64."""
    return (word + (1 << 63)) % (1 << 64) - (1 << 63)


Reduce = Callable[[Tensor], Tensor]
"""Differentiable sum of a tensor over the workers; batch norm gives it float64 [2 C + 1]."""


class SyncedBatchNormAct2d(nn.BatchNorm2d):
    """Batch norm, then ReLU; with `reduce` its statistics are those of all workers' batches together.

    Without `reduce` it is torch's. Running statistics are torch's too: unbiased variance, momentum 0.1; with `reduce`
    they are equal on all workers.
    """

    reduce: Reduce | None = None

    def __init__(self, channels: int) -> None:
        super().__init__(channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] float to the same shape and dtype; at least two values for each channel over all workers."""
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
        # The kernel takes the statistics as constants. These factors do not change its result; they carry the
        # gradients of the statistics, and spare the passes of an elementwise formula.
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
    """[B, C, h, w] to float64 [2, C]: sums and sums of squares; keeps `x` alone, not its float32 copy.

    Squares are summed around the mean, in float32, and moved to zero in float64: a variance that is small beside the
    squared mean survives the subtraction that follows.
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
    """Set the sum over workers of each batch norm of `model` (None = no sum); return the count of norms."""
    norms = [m for m in model.modules() if isinstance(m, SyncedBatchNormAct2d)]
    for norm in norms:
        norm.reduce = reduce
    return len(norms)


def autocast(device: torch.device, *, enabled: bool) -> AbstractContextManager[Any]:
    """Autocast to bf16, or none; the meta device has no autocast and computes nothing that it would change."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def group_count(channels: int) -> int:
    """32 groups, or the nearest power of two below that divides `channels` with no group of a single channel.

    Our reading: the paper names group norm alone; a group of one channel would be instance norm.
    """
    groups = math.gcd(32, channels)
    return groups // 2 if groups == channels and groups > 1 else groups


def group_norm(x: Tensor, groups: int, scale: Tensor, shift: Tensor) -> Tensor:
    """scale * GroupNorm(x) + shift, a scale and a shift for each sample and channel.

    Samples are taken as further groups, so that the kernel's own affine does it all in one pass. The result has the
    dtype of `x`, under autocast too; statistics are float32 in the kernel.

    Args:
        x: [B, C, h, w] float.
        groups: a divisor of C.
        scale: [B, C].
        shift: [B, C].
    """
    b, c, h, w = x.shape
    with autocast(x.device, enabled=False):
        weight, bias = scale.reshape(-1).to(x.dtype), shift.reshape(-1).to(x.dtype)
        return F.group_norm(x.reshape(1, b * c, h, w), b * groups, weight, bias).view(x.shape)


class GroupNorm(nn.GroupNorm):
    """Group norm over `group_count(channels)` groups, which keeps its input's dtype under autocast.

    Args:
        channels: C.
        act: whether ReLU follows.
    """

    def __init__(self, channels: int, act: bool) -> None:
        super().__init__(group_count(channels), channels)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] float to the same shape and dtype."""
        with autocast(x.device, enabled=False):
            x = F.group_norm(x.contiguous(), self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)
        return F.relu(x, inplace=True) if self.act else x


class SelfAttention(nn.Module):
    """Self attention over the grid with the rescaled residual (appendix C): (x + attention(GroupNorm(x))) / sqrt 2.

    Args:
        channels: C, a multiple of `head_dim`.
        head_dim: width of a head.
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
        """[B, C, h, w] float to the same shape."""
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).unflatten(2, (3, -1, self.head_dim)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return rescaled(x, self.out(mixed).transpose(1, 2).reshape(x.shape))


def rescaled(x: Tensor, branch: Tensor) -> Tensor:
    """(x + branch) / sqrt 2: rescaled residual (appendix C), which keeps the variance of two independent terms."""
    return (x + branch) * math.sqrt(0.5)


@torch.no_grad()
def lecun_normal_(weight: Tensor) -> Tensor:
    """Truncated normal initialisation, JAX's default (appendix C): variance 1 / fan_in after truncation at two std.

    Args:
        weight: [out, in, ...], changed in place and returned.
    """
    std = weight[0].numel() ** -0.5 / _TRUNCATED_STD
    return nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


@torch.no_grad()
def settle_norms(module: nn.Module, batches: Sequence[tuple[Tensor | None, ...]]) -> None:
    """Give the batch norms of a module in eval mode the mean statistics of `batches`, each the module's arguments.

    Everything else stays in eval mode. A module without batch norms is left as it is.
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
