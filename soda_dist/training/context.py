"""The training loop's view of its process: rank, device, collectives. `LocalContext` is a single process."""

from typing import Any, Protocol

import torch


class WorkerContext(Protocol):
    """One of `world` processes that train together."""

    rank: int
    world: int
    device: torch.device

    def say(self, line: str) -> None:
        """Show a line to the user; only rank 0's are shown."""

    def barrier(self) -> None:
        """Wait until every process has called this."""

    def gather(self, value: Any) -> list[Any]:
        """Every process's small `value`, in the order of ranks, on every process."""

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum of a tensor over the processes."""


class LocalContext:
    """A single process: a notebook, a test, a machine without Ray."""

    rank = 0
    world = 1

    def __init__(self, device: str | torch.device = "cpu", say: Any = None) -> None:
        self.device = torch.device(device)
        self._say = say

    def say(self, line: str) -> None:
        if self._say is not None:
            self._say(line)

    def barrier(self) -> None:
        return None

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values
