"""Ranks as threads of this process, for what ranks must agree on."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

SECONDS = 60.0


class ThreadContext:
    """A `WorkerContext` of one thread; a rank that ends early breaks the collectives of the others."""

    def __init__(self, rank: int, world: int, values: list[Any], meeting: threading.Barrier) -> None:
        self.rank, self.world, self.device = rank, world, torch.device("cpu")
        self.said: list[str] = []
        self._values, self._meeting = values, meeting

    def say(self, line: str) -> None:
        if self.rank == 0:
            self.said.append(line)

    def barrier(self) -> None:
        self._meeting.wait(SECONDS)

    def gather(self, value: Any) -> list[Any]:
        self._values[self.rank] = value
        self.barrier()
        values = list(self._values)
        self.barrier()
        return values

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return torch.stack(self.gather(values)).sum(0)


def on_ranks(world: int, act: Callable[[ThreadContext], Any]) -> list[Any]:
    """`act` on every rank at once: what each returned, or raised."""
    values: list[Any] = [None] * world
    meeting = threading.Barrier(world)

    def run(rank: int) -> Any:
        try:
            return act(ThreadContext(rank, world, values, meeting))
        except Exception as error:
            return error

    with ThreadPoolExecutor(world) as threads:
        return list(threads.map(run, range(world)))
