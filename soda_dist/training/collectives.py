"""Collectives over training processes: a differentiable sum for batch norm, those of the loop, and their timeout."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from soda_dist.torch_internals import set_group_timeouts
from soda_dist.training.context import Ask


class _SumOverWorkers(torch.autograd.Function):
    """Sum over ranks; gradients are summed too, since each rank's loss depends on every rank's input."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = values.detach().clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


def sum_over_neighbours(count: int) -> Callable[[Tensor], Tensor]:
    """Return a differentiable sum over `count` consecutive ranks, which keeps shape and dtype; call it on every rank.

    Ranks 0..count-1 sum among themselves, then the next `count`, and so on; `count` divides the number of ranks.
    """
    group = None if count == dist.get_world_size() else dist.new_subgroups(group_size=count)[0]
    return lambda values: _SumOverWorkers.apply(values, group)


class ProcessGroupContext:
    """A `WorkerContext` over the default process group."""

    def __init__(self, device: torch.device, say: Any, asked: Callable[[int], Ask] = lambda step: Ask.NOTHING) -> None:
        self.asked = asked
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.device = device
        self._say = say

    def say(self, line: str) -> None:
        if self.rank == 0:
            self._say(line)

    def barrier(self) -> None:
        dist.barrier()

    def gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def sum(self, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total


def set_collective_timeout(seconds: float) -> None:
    """Set the timeout of all process groups, so that hung ranks raise; `init_distributed` misses DeepSpeed's clones."""
    set_group_timeouts(timedelta(seconds=seconds))
