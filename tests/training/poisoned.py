"""Faults of single training steps: a gradient or a loss that is not finite."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class _Poison(torch.autograd.Function):
    """Multiply the value, the gradient or both by NaN."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, value: bool, gradient: bool) -> Tensor:
        ctx.gradient = gradient
        return values * float("nan") if value else values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient * float("nan") if ctx.gradient else gradient, None, None


def poison(objective: torch.nn.Module, hit: Callable[[Tensor], bool], *, value: bool, gradient: bool) -> None:
    """Spoil the losses of the micro-batches whose positions `hit` chooses, and their gradients."""

    def spoil(_: torch.nn.Module, args: tuple[Tensor, ...], loss: Tensor) -> Tensor:
        return _Poison.apply(loss, value, gradient) if hit(args[3]) else loss

    objective.register_forward_hook(spoil)


def in_steps(*numbers: int, batch: int, row: int = 0) -> Callable[[Tensor], bool]:
    """Choose the micro-batches that hold row `row` of the global batch of these steps, which count from 1."""
    positions = {(number - 1) * batch + row for number in numbers}
    return lambda index: not positions.isdisjoint(index.numpy().tolist())
