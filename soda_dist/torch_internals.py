"""Private names of torch, in this file alone."""

from collections.abc import Callable
from datetime import timedelta
from typing import Final, Self

from torch import Tensor, nn

CHECKED_AGAINST: Final = "2.14"
"""The torch version that these names were checked against."""


class FixedDtype(nn.Module):
    """A module without parameters whose buffers follow its device and never its dtype."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return super()._apply(lambda buffer: buffer.to(fn(buffer).device), recurse)


def own_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a module without those of its children, shared ones included."""
    return {name: value for name, value in module._parameters.items() if value is not None}


def own_persistent_buffers(module: nn.Module) -> list[str]:
    """Names of a module's buffers that its state dict holds, without those of its children."""
    return [name for name, value in module._buffers.items() if value is not None and _is_persistent(module, name)]


def _is_persistent(module: nn.Module, name: str) -> bool:
    return name not in module._non_persistent_buffers_set


def set_group_timeouts(limit: timedelta) -> None:
    """Bound the collectives of every process group of this process, those that libraries made included."""
    import torch.distributed as dist

    set_timeout = dist.set_timeout if hasattr(dist, "set_timeout") else dist.distributed_c10d._set_pg_timeout
    for group in list(dist.distributed_c10d._world.pg_map):
        set_timeout(limit, group)
