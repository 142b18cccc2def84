"""A pool in this process that treats its work as a cluster does: two workers, any order, everything sent as bytes."""

import pickle
from collections.abc import Iterable, Iterator
from itertools import cycle

import numpy as np

from soda_dist.parallel.local_pool import LocalPool
from soda_dist.parallel.pool import Job, Piece, Result, Setup
from soda_dist.parallel.progress import Progress

WORKERS = 2


class ScatteredPool(LocalPool):
    """Pieces are done in a seeded random order by two workers in turn; jobs, pieces and results pass through pickle."""

    def __init__(self, seed: int = 0, setup: Setup | None = None) -> None:
        super().__init__()
        self._seed = seed
        self._workers = [LocalPool(setup=setup) for _ in range(WORKERS)]

    def with_state(self, setup: Setup, *, cpus: int | None = None) -> "ScatteredPool":
        return ScatteredPool(self._seed, setup)

    def completed(
        self, job: Job[Piece, Result], pieces: Iterable[Piece], progress: Progress | None = None
    ) -> Iterator[tuple[int, Result]]:
        given, workers = list(pieces), cycle(self._workers)
        order = np.random.default_rng(self._seed).permutation(len(given)).tolist()

        def send(state: None, piece: Piece) -> Result:
            sent_job, sent_piece = pickle.loads(pickle.dumps((job, piece)))
            return pickle.loads(pickle.dumps(next(workers).call(sent_job, sent_piece)))

        for place, result in super().completed(send, [given[number] for number in order], progress):
            yield order[place], result

    def release(self) -> None:
        for worker in self._workers:
            worker.release()
