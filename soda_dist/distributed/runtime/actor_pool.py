"""Actors that share out pieces of work; a lost actor's pieces are done again by another."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

import ray
from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayActorError, RayTaskError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from soda_dist.errors import UserError
from soda_dist.parallel.progress import Say

Piece = TypeVar("Piece")
Result = TypeVar("Result")

QUEUED = 2
"""Pieces an actor has at a time: the next one is there when it ends one."""
MAX_LOSSES = 3
"""Actors that one piece, or the start, may lose before the work is given up."""
LOST = (RayActorError, ObjectLostError, OutOfMemoryError, NodeDiedError)


class _Worker:
    """Sets itself up once, then does jobs on what the set-up returned."""

    def __init__(self, setup: Callable[[], Any]) -> None:
        self._setup = setup
        self._state: Any = None

    def start(self) -> None:
        # Not in the constructor: an error there would reach the caller as a dead actor, without its type.
        self._state = self._setup()

    def do(self, job: Callable[[Any, Any], Any], piece: Any) -> Any:
        return job(self._state, piece)


def _actor_class(resources: dict[str, float]) -> Any:
    # Not in the placement group of a Tune trial, which holds no more than the trial's own share of a CPU.
    outside: Any = None
    options: dict[str, Any] = {**resources, "scheduling_strategy": PlacementGroupSchedulingStrategy(outside)}
    return ray.remote(**options)(_Worker)


@dataclass(eq=False)
class _Member:
    """One actor as the driver sees it."""

    actor: Any
    ready: bool = False


@dataclass(frozen=True)
class _Call:
    """What a future stands for: a piece by its number, or the member's start."""

    member: _Member
    piece: int | None


class Crew(Generic[Piece, Result]):
    """A context in which `actors` actors are alive from the first work on.

    Each calls `setup` once and does jobs on what it returned. Work begins with the first actor that is ready, so a
    cluster that can only start some of them is slower, not stuck.

    Args:
        setup: picklable; runs in each actor.
        actors: how many.
        resources: Ray's options for one actor, such as {"num_cpus": 1}.
        start_timeout_s: the longest that nobody may be ready.
        say: where losses are told.
    """

    def __init__(
        self, *, setup: Callable[[], Any], actors: int, resources: dict[str, float], start_timeout_s: float, say: Say
    ) -> None:
        self._setup, self._count, self._resources = setup, actors, resources
        self._start_timeout_s, self._say = start_timeout_s, say
        self._members: list[_Member] = []
        self._calls: dict[Any, _Call] = {}
        self._start_losses = 0
        self._waiting_since = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.dismiss()

    def dismiss(self) -> None:
        """Ends the actors, so that others may have what they hold; the next work starts new ones."""
        for member in self._members:
            ray.kill(member.actor)
        self._members, self._calls = [], {}

    def share_out(
        self, job: Callable[[Any, Piece], Result], pieces: Sequence[Piece], tick: Callable[[], None]
    ) -> Iterator[tuple[int, Result]]:
        """(number of the piece, `job(state, piece)`) for every piece once, in the order in which they are done.

        `tick` is called about once a second.

        Raises:
            UserError: no actor could start in time, or one met a user's mistake.
            RuntimeError: a piece, or the start, lost one actor after another.
        """
        todo, losses = deque(range(len(pieces))), [0] * len(pieces)
        left = len(pieces)
        if not self._members:
            self._waiting_since = time.monotonic()
            for _ in range(self._count):
                self._hire()
        while left:
            self._deal(job, pieces, todo)
            for call, result, error in self._finished():
                if error is not None:
                    self._lost(call, error, todo, losses)
                elif call.piece is None:
                    call.member.ready, self._start_losses = True, 0
                else:
                    left -= 1
                    yield call.piece, result
            tick()

    def each(self, job: Callable[[Any, Any], Result], argument: Any) -> list[Result]:
        """`job(state, argument)` of every actor that has done work; called when no work is under way.

        An actor that is lost meanwhile is left out, and another hired in its place.
        """
        asked = {member.actor.do.remote(job, argument): member for member in self._members if member.ready}
        found = []
        for future, member in asked.items():
            try:
                found.append(ray.get(future))
            except LOST as error:
                self._lost(_Call(member, None), error, deque(), [])
        return found

    def _hire(self) -> None:
        member = _Member(_actor_class(self._resources).remote(self._setup))
        self._members.append(member)
        self._calls[member.actor.start.remote()] = _Call(member, None)

    def _deal(self, job: Callable[[Any, Piece], Result], pieces: Sequence[Piece], todo: deque[int]) -> None:
        """Fill up the ready actors, evenly."""
        for depth in range(1, QUEUED + 1):
            for member in self._members:
                if todo and member.ready and sum(call.member is member for call in self._calls.values()) < depth:
                    number = todo.popleft()
                    self._calls[member.actor.do.remote(job, pieces[number])] = _Call(member, number)

    def _finished(self) -> Iterator[tuple[_Call, Any, Exception | None]]:
        """Calls that ended, with their result or the loss of their actor; nothing after a second without any."""
        done, _ = ray.wait(list(self._calls), num_returns=1, timeout=1.0)
        self._check_waiting()
        for future in done:
            call = self._calls.pop(future)
            try:
                yield call, ray.get(future), None
            except LOST as error:
                yield call, None, error
            except RayTaskError as error:
                cause = error.cause
                if isinstance(cause, UserError):
                    raise UserError(cause.field, cause.got, cause.allowed, cause.remedy) from None
                raise

    def _check_waiting(self) -> None:
        if any(member.ready for member in self._members):
            self._waiting_since = time.monotonic()
        elif time.monotonic() - self._waiting_since > self._start_timeout_s:
            asked = ", ".join(f"{name}={count:g}" for name, count in self._resources.items())
            got = f"no actor ready within {self._start_timeout_s:g} s, each with {asked}"
            raise UserError("evaluation.actors", got, "what the cluster can start", "free resources or add nodes")

    def _lost(self, call: _Call, error: Exception, todo: deque[int], losses: list[int]) -> None:
        """Put back all that the member had, and hire another in its place."""
        orphans = [call, *(other for other in self._calls.values() if other.member is call.member)]
        self._calls = {future: other for future, other in self._calls.items() if other.member is not call.member}
        numbers = [orphan.piece for orphan in orphans if orphan.piece is not None]
        for number in numbers:
            losses[number] += 1
        self._start_losses += call.piece is None
        if self._start_losses >= MAX_LOSSES or any(losses[number] >= MAX_LOSSES for number in numbers):
            raise RuntimeError(f"{MAX_LOSSES} actors were lost at the same work, the last one so: {error}") from error
        todo.extendleft(reversed(numbers))
        self._say(f"an actor was lost; another does its {len(numbers)} pieces again")
        ray.kill(call.member.actor)
        self._members.remove(call.member)
        self._hire()
