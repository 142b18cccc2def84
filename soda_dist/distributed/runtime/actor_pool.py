"""Pools of Ray actors.

Ray restarts a killed actor and repeats its calls (`max_restarts`, `max_task_retries`); the set-up runs inside the first
call, so that its errors keep their type. What stays with the driver, because Ray cannot do it:
- an actor gets at most QUEUED pieces at a time, and only once it has started, so a cluster that can start some of the
  actors is slower, not stuck;
- pieces of an actor that waits for a machine are done by the others too, since that machine may never come;
- if nobody could start for `start_timeout_s`, the user hears which resources were missing.
"""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from soda_dist.distributed.runtime.gang import LOST, run_gang
from soda_dist.distributed.runtime.ray_internals import actor_is_alive, autoscaler_active, free_cpus
from soda_dist.distributed.runtime.resources import check_resources, fitting
from soda_dist.errors import UserError
from soda_dist.parallel.pool import Job, Meet, Piece, Pool, Result, Seat, Setup, Shared, Value
from soda_dist.parallel.progress import Progress, Say

QUEUED = 2
"""Pieces that an actor has at a time: the next one is ready when it ends one."""
RETRIES = 2
"""Times that Ray repeats a call whose actor died: three actors that one piece kills end the work."""


class _Worker:
    """Does jobs on a state that it makes at the first one."""

    def __init__(self, setup: Setup | None, device: str) -> None:
        self._setup, self._device = setup, device
        self._state: list[Any] = []

    def ping(self) -> None:
        """Answers once the actor has started."""

    def do(self, job: Job[Piece, Result], piece: Piece) -> Result:
        if not self._state:
            self._state.append(None if self._setup is None else self._setup(self._device))
        return job(self._state[0], piece)


@dataclass(frozen=True)
class _Stored:
    """A value in Ray's object store."""

    reference: Any

    def get(self) -> Any:
        return ray.get(self.reference)


@dataclass(eq=False)
class _Member:
    """One actor as the driver sees it."""

    actor: Any
    ready: bool = False


@dataclass(frozen=True)
class _Call:
    """What a future stands for: a piece by its number, or (None) the start of the member."""

    member: _Member
    number: int | None


class ActorPool(Pool):
    """Runs jobs in Ray actors; Ray must be connected.

    Args:
        say: shows waiting and losses.
        needs: logical resources of each actor, such as {"CPU": 1} or {"GPU": 0.5}.
        actors: how many; None = as many as the cluster has room for, more while it grows.
        start_timeout_s: the longest time without any running actor.
        setup: makes the actors' state; None = no state.
    """

    def __init__(
        self,
        *,
        say: Say,
        needs: dict[str, float] | None = None,
        actors: int | None = None,
        start_timeout_s: float = 600.0,
        setup: Setup | None = None,
    ) -> None:
        self._say, self._needs, self._actors = say, {"CPU": 1.0} if needs is None else needs, actors
        self._start_timeout_s, self._setup = start_timeout_s, setup
        self._members: list[_Member] = []
        self._calls: dict[Any, _Call] = {}
        self._waiting_since = time.monotonic()

    def with_state(self, setup: Setup, *, cpus: int | None = None) -> "ActorPool":
        return ActorPool(
            say=self._say,
            needs=self._needs if cpus is None else {"CPU": cpus},
            actors=self._actors if cpus is None else None,
            start_timeout_s=self._start_timeout_s,
            setup=setup,
        )

    def completed(
        self, job: Job[Piece, Result], pieces: Iterable[Piece], progress: Progress | None = None
    ) -> Iterator[tuple[int, Result]]:
        if progress:
            progress.begin(pieces)
        work = _Work(job, pieces)
        try:
            while not work.is_done():
                self._hire(work)
                self._deal(work)
                for number, result in self._finished():
                    piece = work.finish(number)
                    if progress:
                        progress.add(piece, result)
                    yield number, result
                if progress:
                    progress.tick()
        finally:
            if any(call.number is not None for call in self._calls.values()):
                self.release()  # an error, or a caller that wants no more: what is under way belongs to nobody
        if progress:
            progress.close()

    def share(self, value: Value) -> Shared[Value]:
        return _Stored(ray.put(value))

    def gang_size(self, wanted: int, setting: str) -> int:
        needs = self._gang_needs()
        check_resources({name: wanted * count for name, count in needs.items()}, self._say, setting=setting)
        return wanted

    def gang(self, job: Callable[[Seat, Piece], Result], pieces: Sequence[Piece], meet: Meet) -> Result:
        needs = self._gang_needs()
        return run_gang(job, pieces, meet, needs=needs, start_timeout_s=self._start_timeout_s, say=self._say)

    def _gang_needs(self) -> dict[str, float]:
        return {"CPU": 1.0} | ({"GPU": 1.0} if "GPU" in self._needs else {})  # NCCL wants a whole GPU for each

    def free_cpus(self) -> list[int]:
        return free_cpus()

    def release(self) -> None:
        for future in self._calls:
            ray.cancel(future)  # Ray would report that it repeats what the kill ends
        for member in self._members:
            ray.kill(member.actor)
        self._members, self._calls = [], {}

    def _hire(self, work: "_Work") -> None:
        """Start the actors, and more while the cluster grows."""
        if not self._members:
            check_resources(self._needs, self._say)
            self._waiting_since = time.monotonic()
        wanted = self._actors or fitting(self._needs) * (2 if autoscaler_active() else 1)
        device = "cuda" if "GPU" in self._needs else "cpu"
        while len(self._members) < min(wanted, work.most):
            outside: Any = None  # a Tune trial's placement group holds no more than the trial's own share of a CPU
            member = _Member(
                ray.remote(_Worker)
                .options(
                    **{f"num_{name.lower()}s": count for name, count in self._needs.items()},
                    scheduling_strategy=PlacementGroupSchedulingStrategy(outside),
                    max_restarts=-1,
                    max_task_retries=RETRIES,
                )
                .remote(self._setup, device)
            )
            self._members.append(member)
            self._calls[member.actor.ping.remote()] = _Call(member, None)

    def _deal(self, work: "_Work") -> None:
        """Give the ready actors pieces, evenly."""
        for depth in range(1, QUEUED + 1):
            for member in self._members:
                if member.ready and sum(call.member is member for call in self._calls.values()) < depth:
                    if not work.has_next():
                        self._rescue(work)
                    if not work.has_next():
                        return
                    number, piece = work.next()
                    self._calls[member.actor.do.remote(work.job, piece)] = _Call(member, number)

    def _rescue(self, work: "_Work") -> None:
        """Put back the pieces of actors that died and are not running again yet."""
        for member in {call.member for call in self._calls.values() if call.number is not None}:
            if actor_is_alive(member.actor):
                continue
            member.ready = False
            orphans = [
                call.number for call in self._calls.values() if call.member is member and call.number is not None
            ]
            self._calls = {future: call for future, call in self._calls.items() if call.member is not member}
            self._calls[member.actor.ping.remote()] = _Call(member, None)
            work.put_back(orphans)
            self._say(f"an actor died; redoing {len(orphans)} pieces on others")

    def _finished(self) -> Iterator[tuple[int, Any]]:
        """Numbers and results of the pieces that were done within a second."""
        done, _ = ray.wait(list(self._calls), num_returns=1, timeout=1.0)
        for future in done:
            call = self._calls.pop(future)
            try:
                result = ray.get(future)
            except LOST as error:
                raise RuntimeError(f"{RETRIES + 1} actors died at the same work, the last one so: {error}") from error
            except RayTaskError as error:
                if isinstance(error.cause, UserError):
                    raise error.cause from None
                raise
            if call.number is None:
                call.member.ready = True
            else:
                yield call.number, result
        self._check_waiting(bool(done))

    def _check_waiting(self, progressed: bool) -> None:
        if progressed:
            self._waiting_since = time.monotonic()
        elif time.monotonic() - self._waiting_since > self._start_timeout_s:
            if any(actor_is_alive(member.actor) for member in self._members):
                self._waiting_since = time.monotonic()  # a long piece
                return
            asked = ", ".join(f"{count:g} {name}" for name, count in self._needs.items())
            got = f"no actor running within {self._start_timeout_s:g} s, each with {asked}"
            raise UserError("evaluation.actors", got, "what the cluster can start", "free resources or add nodes")


class _Work:
    """The pieces of one `completed`: waiting, and under way."""

    def __init__(self, job: Job[Any, Any], pieces: Iterable[Any]) -> None:
        self.job = job
        self.most = len(pieces) if isinstance(pieces, Sized) else sys.maxsize
        self._numbered = enumerate(pieces)
        self._waiting: deque[tuple[int, Any]] = deque()
        self._under_way: dict[int, Any] = {}

    def has_next(self) -> bool:
        """Whether a piece waits."""
        if not self._waiting and (fetched := next(self._numbered, None)) is not None:
            self._waiting.append(fetched)
        return bool(self._waiting)

    def next(self) -> tuple[int, Any]:
        """The next piece and its number; it is under way from now on."""
        number, piece = self._waiting.popleft()
        self._under_way[number] = piece
        return number, piece

    def put_back(self, numbers: Sequence[int]) -> None:
        """These pieces wait again, before all others."""
        self._waiting.extendleft((number, self._under_way.pop(number)) for number in reversed(numbers))

    def finish(self, number: int) -> Any:
        """The piece, which is done."""
        return self._under_way.pop(number)

    def is_done(self) -> bool:
        """Whether no piece is left."""
        return not self._under_way and not self.has_next()
