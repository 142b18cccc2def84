"""Batch norm over fixed groups of samples, whatever the workers and micro-batches that hold them."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Reduce = Callable[[Tensor], Tensor]
"""Differentiable sum of a tensor over the workers that share a group; batch norm passes float64 [2 C + 1]."""


class _Active(threading.local):
    """Views of each group of the batch within `grouped`; torch.compile reads a thread's attributes."""

    def __init__(self) -> None:  # in each thread: the compiler's guards want attributes of the instance
        self.sizes: tuple[int, ...] | None = None


_ACTIVE = _Active()


@contextmanager
def grouped(sizes: Sequence[int] | None) -> Iterator[None]:
    """Normalise the first sizes[0] views of a batch by their own statistics, and so on; None = all as one group."""
    before, _ACTIVE.sizes = _ACTIVE.sizes, None if sizes is None else tuple(sizes)
    try:
        yield
    finally:
        _ACTIVE.sizes = before


class GroupedBatchNormAct2d(nn.BatchNorm2d):
    """Batch norm, then ReLU; in training, each group of the batch (`grouped`) has its own mean and variance.

    A group that several workers hold in parts has the statistics of all parts, see `share_groups`. Running statistics
    change in `update_running_statistics` alone, once per update of the model.
    """

    reduce: Reduce | None = None
    pending: Tensor
    """float64 [3, C], not in the state dict: sums of means and of unbiased variances, and the number of groups. Each
    worker that holds a part of a group counts it; all groups have as many of them, so means over groups stay right."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.register_buffer("pending", torch.zeros(3, channels, dtype=torch.float64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise float [V, C, h, w], shape and dtype kept; a group needs two values per channel."""
        if not self.training:
            y = super().forward(x)
        elif self.reduce is not None:
            y = self._shared(x)
        else:
            parts = [self._whole(part) for part in x.split(list(_ACTIVE.sizes or (len(x),)))]
            y = parts[0] if len(parts) == 1 else torch.cat(parts)
        return F.relu(y, inplace=True)

    def _whole(self, x: Tensor) -> Tensor:
        """Normalise one group, all of it here, by torch's kernel, which a momentum of 1 makes report its statistics."""
        mean, variance = torch.zeros_like(self.bias), torch.zeros_like(self.bias)
        y = F.batch_norm(x, mean, variance, self.weight, self.bias, True, 1.0, self.eps)
        self._keep(mean, variance)
        return y

    def _shared(self, x: Tensor) -> Tensor:
        """Normalise this worker's part of a group."""
        assert self.reduce is not None
        sums = _ChannelSums.apply(x).flatten()
        total = self.reduce(torch.cat([sums, sums.new_full((1,), x.numel() / x.shape[1])]))
        count = total[-1].detach()
        mean, square = (total[:-1] / count).view(2, -1)
        variance = (square - mean.square()).clamp_min(0)
        self._keep(mean, variance * count / (count - 1).clamp_min(1))
        deviation, mean, variance = torch.rsqrt(variance + self.eps).float(), mean.float(), variance.float()
        # The kernel treats the statistics as constants. These factors leave its result unchanged and carry the
        # gradients of the statistics, with fewer passes than an elementwise formula.
        weight = self.weight * (deviation / deviation.detach())
        bias = self.bias + (mean.detach() - mean) * deviation * self.weight
        return F.batch_norm(x, mean.detach(), variance.detach(), weight, bias, False, 0.0, self.eps)

    @torch.no_grad()
    def _keep(self, mean: Tensor, variance: Tensor) -> None:
        self.pending += torch.stack([mean.double(), variance.double(), torch.ones_like(mean).double()])


class _ChannelSums(torch.autograd.Function):
    """Sums and sums of squares of [V, C, h, w], float64 [2, C]; saves `x` only, not its float32 copy.

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


def share_groups(model: nn.Module, reduce: Reduce) -> int:
    """Let the batch norms of `model` sum over the workers that hold a group in parts; return the number of norms."""
    norms = _norms(model)
    for norm in norms:
        norm.reduce = reduce
    return len(norms)


@torch.no_grad()
def update_running_statistics(
    model: nn.Module, total: Callable[[Tensor], Tensor] = lambda values: values, finite: Tensor | None = None
) -> None:
    """Move the running statistics of norms in training by the mean over all groups since the last call.

    The mean and the unbiased variance of a group count once each, and the momentum is torch's, 0.1, for each call; so
    the result depends on neither the workers nor the order of micro-batches, up to the summation order.

    Args:
        total: sum over all workers of a float64 tensor; every worker calls.
        finite: bool scalar; False = forget what was seen instead, for a step that is skipped. None = True.
    """
    norms = [norm for norm in _norms(model) if norm.training]
    if not norms:
        return
    sums = total(torch.cat([norm.pending.flatten() for norm in norms]))
    moves = torch.ones_like(sums[0]) if finite is None else finite.to(sums.dtype)
    sums = torch.where(moves > 0, sums, 1.0)  # not NaN: statistics that move by 0 towards it would become NaN
    for norm, part in zip(norms, sums.split([norm.pending.numel() for norm in norms]), strict=True):
        assert norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None
        mean, variance, groups = part.view(3, -1)
        momentum = ((0.1 if norm.momentum is None else norm.momentum) * moves).to(norm.running_mean)
        norm.running_mean.lerp_((mean / groups).to(norm.running_mean), momentum)
        norm.running_var.lerp_((variance / groups).to(norm.running_var), momentum)
        norm.num_batches_tracked.add_(moves.long())
        norm.pending.zero_()


def _norms(model: nn.Module) -> list[GroupedBatchNormAct2d]:
    return [module for module in model.modules() if isinstance(module, GroupedBatchNormAct2d)]


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
        update_running_statistics(module)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum
