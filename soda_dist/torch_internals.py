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


def set_group_timeouts(limit: timedelta) -> None:
    """Bound the collectives of every process group of this process, those that libraries made included."""
    import torch.distributed as dist

    set_timeout = dist.set_timeout if hasattr(dist, "set_timeout") else dist.distributed_c10d._set_pg_timeout
    for group in list(dist.distributed_c10d._world.pg_map):
        set_timeout(limit, group)
