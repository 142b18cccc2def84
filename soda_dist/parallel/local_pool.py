"""Pools without a cluster: this process, or a few of them."""

import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from soda_dist.parallel.pool import Held, Job, Meet, Piece, Pool, Result, Seat, Setup, Shared, Value
from soda_dist.parallel.progress import Progress

MAX_LOSSES = 3
"""Processes that a piece may kill before the work is given up."""


class LocalPool(Pool):
    """Runs jobs in this process, or in `processes` spawned ones.

    Args:
        processes: 0 = this process.
        device: `cpu` or `cuda`, for the workers' state.
        setup: makes the state; None = no state.
    """

    def __init__(self, processes: int = 0, *, device: str = "cpu", setup: Setup | None = None) -> None:
        self._processes, self._device, self._setup = processes, device, setup
        self._state: list[Any] = []
        self._executor: ProcessPoolExecutor | None = None
        self._shelf: str | None = None

    def with_state(self, setup: Setup, *, cpus: int | None = None) -> "LocalPool":
        return LocalPool(self._processes, device=self._device, setup=setup)

    def completed(
        self, job: Job[Piece, Result], pieces: Iterable[Piece], progress: Progress | None = None
    ) -> Iterator[tuple[int, Result]]:
        if progress:
            progress.begin(pieces)
        for number, piece, result in self._each(job, pieces, progress):
            if progress:
                progress.add(piece, result)
                progress.tick()
            yield number, result
        if progress:
            progress.close()

    def _each(
        self, job: Job[Piece, Result], pieces: Iterable[Piece], progress: Progress | None
    ) -> Iterator[tuple[int, Piece, Result]]:
        if self._processes:
            yield from self._in_processes(job, pieces, progress)
            return
        for number, piece in enumerate(pieces):
            yield number, piece, _perform(self._state, self._setup, self._device, job, piece)

    def _in_processes(
        self, job: Job[Piece, Result], pieces: Iterable[Piece], progress: Progress | None
    ) -> Iterator[tuple[int, Piece, Result]]:
        """As `_each`. A killed process breaks its whole executor, so a new one does what was under way again."""
        numbered, again = enumerate(pieces), list[tuple[int, Piece, int]]()
        running: dict[Future[Result], tuple[ProcessPoolExecutor, int, Piece, int]] = {}
        try:
            while True:
                while len(running) < 2 * self._processes:
                    todo = again.pop() if again else next(((*each, 0) for each in numbered), None)
                    if todo is None:
                        break
                    executor, future = self._submit(job, todo[1])
                    running[future] = (executor, *todo)
                if not running:
                    return
                done, _ = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
                for future in done:
                    executor, number, piece, losses = running.pop(future)
                    try:
                        yield number, piece, future.result()
                    except BrokenProcessPool:
                        if losses + 1 >= MAX_LOSSES:
                            raise RuntimeError(f"piece {number} killed {MAX_LOSSES} processes") from None
                        again.append((number, piece, losses + 1))
                        self._executor = None if self._executor is executor else self._executor
                if progress and not done:
                    progress.tick()
        finally:
            for future in running:
                future.cancel()

    def _submit(self, job: Job[Piece, Result], piece: Piece) -> "tuple[ProcessPoolExecutor, Future[Result]]":
        executor = self._executor or ProcessPoolExecutor(self._processes, multiprocessing.get_context("spawn"))
        self._executor = executor
        try:
            return executor, executor.submit(_perform_there, self._setup, self._device, job, piece)
        except BrokenProcessPool:  # noticed between two pieces
            self._executor = None
            return self._submit(job, piece)

    def share(self, value: Value) -> Shared[Value]:
        if not (self._processes and isinstance(value, np.ndarray)):
            return Held(value)
        if self._shelf is None:
            self._shelf = tempfile.mkdtemp(prefix="soda-pool-")
        path = Path(self._shelf) / f"{len(list(Path(self._shelf).iterdir()))}.npy"
        np.save(path, value, allow_pickle=False)
        return _Mapped(str(path))  # type: ignore[return-value]

    def gang_size(self, wanted: int, setting: str) -> int:
        return 1

    def gang(self, job: Callable[[Seat, Piece], Result], pieces: Sequence[Piece], meet: Meet) -> Result:
        (piece,) = pieces
        return job(Seat(0, 1, self._device), piece)

    def free_cpus(self) -> list[int]:
        return [os.cpu_count() or 1]

    def release(self) -> None:
        self._state.clear()
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
            self._executor = None
        if self._shelf is not None:
            shutil.rmtree(self._shelf, ignore_errors=True)
            self._shelf = None


@dataclass(frozen=True)
class _Mapped:
    """An array in a file, mapped into memory by each process."""

    path: str

    def get(self) -> NDArray[Any]:
        return np.load(self.path, mmap_mode="r", allow_pickle=False)


_STATE: list[Any] = []
"""The state of a spawned process, which belongs to one pool."""


def _perform_there(setup: Setup | None, device: str, job: Job[Piece, Result], piece: Piece) -> Result:
    return _perform(_STATE, setup, device, job, piece)


def _perform(state: list[Any], setup: Setup | None, device: str, job: Job[Piece, Result], piece: Piece) -> Result:
    """The job, after the set-up at its first time: an error of the set-up reaches the caller with its type."""
    if not state:
        state.append(None if setup is None else setup(device))
    return job(state[0], piece)
