"""Private names of torch; no other file uses any."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Final, Self

import torch
from torch import Tensor, nn

CHECKED_AGAINST: Final = "2.14"
"""Torch version for which the names were checked."""


class FixedDtype(nn.Module):
    """Module without parameters whose buffers follow its device but keep their dtype."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return super()._apply(lambda buffer: buffer.to(fn(buffer).device), recurse)


def own_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return a module's parameters without those of its children, shared ones included."""
    return {name: value for name, value in module._parameters.items() if value is not None}


def own_persistent_buffers(module: nn.Module) -> list[str]:
    """List a module's buffers in its state dict, without those of its children."""
    return [name for name, value in module._buffers.items() if value is not None and _is_persistent(module, name)]


def _is_persistent(module: nn.Module, name: str) -> bool:
    return name not in module._non_persistent_buffers_set


def lerp_all(tensors: Sequence[Tensor], ends: Sequence[Tensor], weight: Tensor) -> None:
    """Move each tensor in place towards its end by `weight`, a scalar on their device; 0 leaves them as they are."""
    torch._foreach_lerp_(list(tensors), list(ends), [weight] * len(tensors))


def set_group_timeouts(limit: timedelta) -> None:
    """Set the collective timeout of all process groups of this process, including those made by libraries."""
    import torch.distributed as dist

    set_timeout = dist.set_timeout if hasattr(dist, "set_timeout") else dist.distributed_c10d._set_pg_timeout
    for group in list(dist.distributed_c10d._world.pg_map):
        set_timeout(limit, group)
