"""What becomes of a run whose processes report or end: it waits, starts again, or ends with a reason."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from soda_dist.config.sections import Scale
from soda_dist.distributed.worker_control import Beat, Stacks
from soda_dist.errors import MachineError, UserError
from soda_dist.interrupts import RESUME
from soda_dist.parallel.progress import Say
from soda_dist.training.context import Ask
from soda_dist.training.failures import Remedy
from soda_dist.training.ticker import duration

SILENT_S = 10.0
"""Without a sign of life for so long, no training process runs."""
FIRST_LINE_S, LINE_S = 10.0, 60.0
"""From the beginning of a wait to the first line about it, and from line to line."""


class Failed(NamedTuple):
    """A training process ended with an error."""

    rank: int
    step: int | None
    """The last step that it finished; None = not one since it started."""
    remedy: Remedy
    error: Exception
    trace: str


class Placed(NamedTuple):
    """The training processes have their machines and are starting."""


class Restarting(NamedTuple):
    """Ray Train starts the processes again."""

    reason: str
    preempted: bool


class Controller(NamedTuple):
    """Ray Train's controller, an actor."""

    actor: Any


Fact = Failed | Placed | Restarting | Controller | Stacks


@dataclass
class Supervisor:
    """Judges what is reported of one run.

    Args:
        scale: `max_failures` and `max_wait_s`.
        missing: given the controller, returns what the run asks for and what the cluster has; empty = there is room;
            None = the run has its machines.
        now: seconds.

    Attributes:
        ask: the order to the workers.
        end: the error to end the run with; None = there is none.
        controller: Ray Train's, once it has reported.
    """

    scale: Scale
    say: Say
    missing: Callable[[Any], str | None]
    now: float
    ask: Ask = Ask.NOTHING
    end: Exception | None = None
    controller: Any = None
    failures: int = 0
    _attempt: list[Failed] = field(default_factory=list)
    _earlier: set[tuple[int | None, str]] = field(default_factory=set)
    _since: float | None = None
    """When the wait for machines began; None = there is none."""
    _lined: float = 0.0
    _started: float = float("-inf")
    """When the processes of now were asked for; signs of life from before are of others."""
    _stepped: bool = False

    def __post_init__(self) -> None:
        self.waits()

    def waits(self) -> None:
        """Note that training processes wait for their machines."""
        self._since, self._lined = self.now, self.now - LINE_S + FIRST_LINE_S

    def begins_again(self) -> None:
        """Note that new training processes are asked for."""
        self._started, self._stepped = self.now, False
        self.waits()

    @property
    def waiting(self) -> bool:
        """Whether the training processes wait for their machines."""
        return self._since is not None

    def took(self, fact: Fact) -> None:
        """Take a report."""
        match fact:
            case Controller(actor):
                self.controller = actor
            case Placed():
                self._since = None
            case Stacks(rank, text):
                self.say(f"no step for {self.scale.hang_timeout_s:g} s; the stacks of process {rank}:")
                for line in text.splitlines():
                    self.say(f"  {line}")
            case Failed():
                self._failed(fact)
            case Restarting():
                self._restarting(fact)

    def _failed(self, failed: Failed) -> None:
        self._attempt.append(failed)
        if self.end is not None or failed.remedy in (Remedy.LEFT, Remedy.PEER):
            return
        if failed.remedy is Remedy.NOTHING or (failed.step, str(failed.error)) in self._earlier:
            self.end = self._diagnosis(failed)

    def _diagnosis(self, failed: Failed) -> Exception:
        if not isinstance(failed.error, MachineError):
            return failed.error
        for line in failed.trace.splitlines():
            self.say(f"  {line}")
        when = "before its first step" if failed.step is None else f"after step {failed.step}"
        again = "" if failed.remedy is Remedy.NOTHING else ", as at an earlier start"
        return MachineError(f"training process {failed.rank} failed {when}{again}: {failed.error}")

    def _restarting(self, fact: Restarting) -> None:
        attempt, self._attempt = self._attempt, []
        self._earlier |= {(each.step, str(each.error)) for each in attempt}
        self.begins_again()
        if self.ask is Ask.LEAVE:
            self.ask = Ask.NOTHING
        if self.end is not None:
            return
        if fact.preempted or any(each.remedy is Remedy.LEFT for each in attempt):
            self.say("moving: the run resumes from its checkpoint as soon as there is room")
            return
        worst = next((each for each in attempt if each.remedy is Remedy.RETRY), None)
        reason = str(worst.error) if worst else fact.reason
        self.lost(reason)
        if self.end is None:
            self.say(f"a training process was lost ({reason}); starting again from the last checkpoint")

    def lost(self, reason: str) -> None:
        """Count a failure; `end` is set if it is one too many."""
        self.failures += 1
        if 0 <= self.scale.max_failures < self.failures:
            self.end = MachineError(
                f"{self.failures} failures, and scale.max_failures={self.scale.max_failures}; "
                f"the last: {reason}; {RESUME}"
            )

    @property
    def idle(self) -> bool:
        """Whether no training process has finished a step since the last start, so that there is nothing to save."""
        return not self._stepped

    def tick(self, now: float, heard: Mapping[int, tuple[float, Beat]], draining: Collection[str]) -> None:
        """Look at the time, the last signs of life by rank, and Ray's IDs of nodes that are about to go."""
        self.now = now
        alive = [beat for time, beat in heard.values() if time > self._started and now - time < SILENT_S]
        self._stepped = self._stepped or any(beat.step is not None for beat in alive)
        if self.ask is Ask.NOTHING and any(beat.node in draining for beat in alive):
            self.say("a machine is about to be taken away: saving a checkpoint")
            self.ask = Ask.LEAVE
        if self._since is None:
            return
        waited, late = now - self._since, now - self._since > self.scale.wait_s
        if not late and now - self._lined < LINE_S:
            return
        missing = self.missing(self.controller)
        if missing is None:
            self._since = None
        elif not missing:
            self.waits()
        elif late:
            remedy = "raise it (null: no limit), lower scale.workers, or add machines"
            got = f"no machines within {self.scale.wait_s:g} s: {missing}"
            self.end = self.end or UserError("scale.max_wait_s", got, "a wait that suffices", remedy)
        else:
            self._lined = now
            self.say(f"waiting for machines, {duration(waited)} so far: {missing}")
