"""The protocol of pools: one job over many pieces, wherever it runs.

A job is a module-level function, or a `partial` of one, of the worker's state and a piece. Pieces are done once each
and in no order that a result may depend on. Written against this protocol, evaluation and import run in a notebook
(`local_pool.LocalPool`) and on a cluster (`distributed.runtime.actor_pool.ActorPool`) alike.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, Protocol, Self, TypeVar

from soda_dist.parallel.progress import Progress

Piece = TypeVar("Piece")
Result = TypeVar("Result")
Value = TypeVar("Value")
Value_co = TypeVar("Value_co", covariant=True)
Job = Callable[[Any, Piece], Result]
Setup = Callable[[str], Any]
"""A worker's device, `cpu` or `cuda`, to its state."""


class Shared(Protocol[Value_co]):
    """A value that every worker can get without its being sent with every piece."""

    def get(self) -> Value_co:
        """The value; arrays may be read-only."""


@dataclass(frozen=True)
class Held(Generic[Value]):
    """A value as it is; also a `Setup` that gives it as the state."""

    value: Value

    def get(self) -> Value:
        return self.value

    def __call__(self, device: str) -> Value:
        return self.value


@dataclass(frozen=True)
class Seat:
    """A member of a gang: jobs that run at the same time and talk to each other.

    Attributes:
        rank, size: which member of how many.
        device: `cpu` or `cuda`.
        meeting: what `meet` gave to the first member, for all to find each other.
        kept: what `meet` gave to the first member to keep; None for the others.
    """

    rank: int
    size: int
    device: str
    meeting: Any = None
    kept: Any = None


Meet = Callable[[str, int], tuple[Any, Any]]
"""The first member's host and the gang's size to (what all are told, what the first member keeps)."""


def in_order(completed: Iterable[tuple[int, Result]]) -> Iterator[Result]:
    """Numbered results as they come, in the order of their numbers; holds those that are early."""
    early: dict[int, Result] = {}
    due = 0
    for number, result in completed:
        early[number] = result
        while due in early:
            yield early.pop(due)
            due += 1


class Pool(ABC):
    """Workers with one state each, made on first use and kept until `release`."""

    @abstractmethod
    def with_state(self, setup: Setup, *, cpus: int | None = None) -> "Pool":
        """A pool like this one with workers of its own, whose jobs get `setup(device)`, made once in each worker.

        Args:
            setup: picklable.
            cpus: of each worker; None = as this pool has it.
        """

    @abstractmethod
    def completed(
        self, job: Job[Piece, Result], pieces: Iterable[Piece], progress: Progress | None = None
    ) -> Iterator[tuple[int, Result]]:
        """(number of the piece, `job(state, piece)`) for every piece once, in the order of completion.

        Raises:
            UserError: a job or the set-up raised one, or no worker could start in time.
            RuntimeError: a piece, or the set-up, killed one worker after another.
        """

    @abstractmethod
    def share(self, value: Value) -> Shared[Value]:
        """`value` for all workers, stored once; jobs call `get` on it."""

    @abstractmethod
    def gang_size(self, wanted: int, setting: str) -> int:
        """How many members a gang gets, at most `wanted`; `setting` is the field that asks for them.

        Raises:
            UserError: the cluster has no room for so many.
        """

    @abstractmethod
    def gang(self, job: Callable[[Seat, Piece], Result], pieces: Sequence[Piece], meet: Meet) -> Result:
        """`job(seat, piece)` of all pieces at the same time, a member for each; the first member's result.

        A lost member ends its gang, and a new one starts from the beginning.

        Raises:
            UserError: a job raised one, or the cluster had no room for the whole gang in time.
            RuntimeError: gangs were lost one after another.
        """

    @abstractmethod
    def free_cpus(self) -> list[int]:
        """CPUs that nothing uses, of each machine."""

    @abstractmethod
    def release(self) -> None:
        """End the workers and free what they hold; the next job starts new ones."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def map(self, job: Job[Piece, Result], pieces: Iterable[Piece], progress: Progress | None = None) -> list[Result]:
        """`job(state, piece)` of every piece, in the order of the pieces; raises as `completed`."""
        found = dict(self.completed(job, pieces, progress))
        return [found[number] for number in range(len(found))]

    def map_split(
        self,
        job: Job[Piece, Result],
        wholes: Sequence[Value],
        split: Callable[[Value], Sequence[Piece]],
        progress: Progress | None = None,
    ) -> list[list[Result]]:
        """`map` over the pieces of several wholes at once: the results of each whole's pieces."""
        parts = [split(whole) for whole in wholes]
        results = iter(self.map(job, [piece for some in parts for piece in some], progress))
        return [list(islice(results, len(some))) for some in parts]

    def call(self, job: Job[Piece, Result], piece: Piece) -> Result:
        """`job(state, piece)` by one worker."""
        return self.map(job, [piece])[0]
