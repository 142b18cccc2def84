"""Evaluation in the test's process: a pool that remembers its pieces, a gang of threads, views and their latents."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from soda_dist.evaluation.features import probe_group
from soda_dist.models.condition import Sources
from soda_dist.models.pixels import source_input
from soda_dist.parallel.local_pool import LocalPool
from soda_dist.parallel.pool import Job, Meet, Piece, Result, Seat, Setup
from soda_dist.parallel.progress import Progress
from tests.evaluation.scattered_pool import ScatteredPool
from tests.metrics.test_probe_workers import Member, Threads


class Recording(ScatteredPool):
    """Remembers all pieces that it did."""

    def __init__(self, seed: int = 0, setup: Setup | None = None) -> None:
        super().__init__(seed, setup)
        self.done: list[Any] = []

    def with_state(self, setup: Setup, *, cpus: int | None = None) -> "Recording":
        return Recording(self._seed, setup)

    def completed(
        self, job: Job[Piece, Result], pieces: Iterable[Piece], progress: Progress | None = None
    ) -> Iterator[tuple[int, Result]]:
        given = list(pieces)
        self.done += given
        return super().completed(job, given, progress)


class _Together(Member):
    """A member of a gang of threads, in place of a process group."""

    def barrier(self) -> None:
        self.together.barrier.wait()


class ThreadGang(LocalPool):
    """Gives each member of a gang a thread; `on_threads` must be in force. Remembers the gangs' pieces."""

    def __init__(self) -> None:
        super().__init__()
        self.gangs: list[Sequence[Any]] = []

    def gang_size(self, wanted: int, setting: str) -> int:
        return wanted

    def gang(self, job: Callable[[Seat, Piece], Result], pieces: Sequence[Piece], meet: Meet) -> Result:
        self.gangs.append(pieces)
        threads, size = Threads(len(pieces)), len(pieces)
        with ThreadPoolExecutor(size) as executor:
            seats = [Seat(rank, size, "cpu", meeting=threads) for rank in range(size)]
            calls = [executor.submit(job, seat, piece) for seat, piece in zip(seats, pieces, strict=True)]
            first, *_ = [call.result() for call in calls]
        return first


def on_threads(patch: pytest.MonkeyPatch) -> None:
    """The probe's gang meets in `ThreadGang`'s threads."""

    def joined(seat: Seat, device: object) -> _Together:
        return _Together(seat.meeting, seat.rank, seat.size)

    patch.setattr(probe_group, "_joined_group", joined)


def alone(views: Tensor) -> Sources:
    """uint8 [n, s, s, 3] views as the single sources of n samples."""
    return Sources(source_input(views)[:, None], torch.ones(len(views), 1, dtype=torch.bool), None)


def with_nan(module: nn.Module, args: tuple, z: Tensor) -> Tensor:
    """A forward hook of an encoder that has diverged for the first row of each batch."""
    z = z.clone()
    z[0, 0] = float("nan")
    return z
