"""Evaluation in the test's process: a pool over given models, a gang of threads, contexts, views."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from soda_dist.config.schema import RunConfig
from soda_dist.data.storage.folder import open_folder
from soda_dist.evaluation.context import Context
from soda_dist.evaluation.features import probe_group
from soda_dist.evaluation.worker import Models
from soda_dist.models.condition import Sources
from soda_dist.models.pixels import source_input
from soda_dist.parallel.local_pool import LocalPool
from soda_dist.parallel.pool import Held, Job, Meet, Piece, Pool, Result, Seat
from soda_dist.parallel.progress import Progress, Say, silent
from tests.metrics.test_probe_workers import Member, Threads


class Scrambled(LocalPool):
    """Does the pieces in a seeded random order, and remembers all that it did."""

    def __init__(self, state: object = None, seed: int = 0) -> None:
        super().__init__(setup=Held(state))
        self._seed = seed
        self.done: list[Any] = []

    def completed(
        self, job: Job[Piece, Result], pieces: Iterable[Piece], progress: Progress | None = None
    ) -> Iterator[tuple[int, Result]]:
        given = list(pieces)
        self.done += given
        order = np.random.default_rng(self._seed).permutation(len(given)).tolist()
        for at, result in super().completed(job, [given[number] for number in order], progress):
            yield order[at], result


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


def context_of(
    models: Models, run: Path, config: RunConfig | None = None, *, workers: Pool | None = None, say: Say = silent
) -> Context:
    """A context over models that are there already; `workers` hold them, by default a `Scrambled` pool."""
    reader = models.reader[models.config.evaluation.train_split]
    return Context(
        run=open_folder(str(run)),
        data=reader.folder,
        manifest=reader.manifest,
        config=config or models.config,
        step=0,
        ema=True,
        weights="w",
        say=say,
        pool=LocalPool(),
        workers=workers or Scrambled(models),
    )


def alone(views: Tensor) -> Sources:
    """uint8 [n, s, s, 3] views as the single sources of n samples."""
    return Sources(source_input(views)[:, None], torch.ones(len(views), 1, dtype=torch.bool), None)


def with_nan(module: nn.Module, args: tuple, z: Tensor) -> Tensor:
    """A forward hook of an encoder that has diverged for the first row of each batch."""
    z = z.clone()
    z[0, 0] = float("nan")
    return z
