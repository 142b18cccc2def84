"""Between training processes and the driver: lines, metrics, facts and signs of life one way, one order the other.

The mailbox is an actor on the driver's node, so that no other node's loss takes it away. It holds only what is on its
way: the driver repeats its order at each exchange, and Ray starts an actor that died again, so its loss costs the lines
of half a second.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from soda_dist.parallel.progress import Say
from soda_dist.training.context import Ask
from soda_dist.training.observers.observer import Observer

LOOK_S = 0.5
CLOSE_S = 120.0
"""The longest wait for what observers still send when the run has ended."""
Event = tuple[str, tuple[Any, ...]]
"""Method of an `Observer` and its arguments."""


class Beat(NamedTuple):
    """A sign of life of a training process."""

    rank: int
    node: str
    """Ray's ID of its node."""
    step: int | None
    """The last step that it finished; None = none since it started."""


class _Actor:
    """Holds what the driver has not taken yet, and its order to the workers."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._events: list[Event] = []
        self._facts: list[Any] = []
        self._beats: dict[int, Beat] = {}
        self._ask = Ask.NOTHING

    def put(self, line: str) -> None:
        self._lines.append(line)

    def observe(self, event: Event) -> None:
        self._events.append(event)

    def report(self, fact: Any) -> None:
        self._facts.append(fact)

    def beat(self, beat: Beat) -> Ask:
        self._beats[beat.rank] = beat
        return self._ask

    def exchange(self, ask: Ask) -> tuple[list[str], list[Event], list[Any], list[Beat]]:
        taken = self._lines, self._events, self._facts, list(self._beats.values())
        self._lines, self._events, self._facts, self._beats, self._ask = [], [], [], {}, ask
        return taken


class Relay:
    """An observer in a training process: hands everything to the driver's, so that no tracker can hold training up."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def start(self, step: int) -> None:
        self._actor.observe.remote(("start", (step,)))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._actor.observe.remote(("metrics", (step, dict(values))))

    def picture(self, step: int, name: str, png: bytes) -> None:
        self._actor.observe.remote(("picture", (step, name, png)))

    def close(self) -> None:
        """Leave the end to the driver, which outlives this process."""


@dataclass
class Mailbox:
    """The driver's end. `ask` may be set at any time; `heard` holds the time and beat of each rank's last sign of life.

    Attributes:
        actor: for the workers: `put`, `observe`, `report`, `beat`.
        facts: what was reported, oldest first.
    """

    actor: Any
    ask: Ask = Ask.NOTHING
    facts: SimpleQueue[Any] = field(default_factory=SimpleQueue)
    _one_at_a_time: threading.Lock = field(default_factory=threading.Lock)
    heard: dict[int, tuple[float, Beat]] = field(default_factory=dict)
    flush: Callable[[], None] = lambda: None
    """Takes what has arrived by now."""

    def exchange(self, say: Say, events: SimpleQueue[Event]) -> None:
        """Take what is there and hand over the order; nothing while Ray starts the actor again."""
        with self._one_at_a_time, suppress(RayActorError):
            lines, observed, facts, beats = ray.get(self.actor.exchange.remote(self.ask))
            for line in lines:
                say(line)
            for event in observed:
                events.put(event)
            for fact in facts:
                self.facts.put(fact)
            self.heard |= {beat.rank: (time.monotonic(), beat) for beat in beats}


@contextmanager
def mailbox(say: Say, observer: Observer | None = None) -> Iterator[Mailbox]:
    """Run a mailbox: show lines through `say` and hand metrics to `observer`, until the block ends."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": here, "max_restarts": -1}
    box, events = Mailbox(ray.remote(**options)(_Actor).remote()), SimpleQueue[Event]()

    def hand_over() -> None:
        while observer is not None and not events.empty():
            method, arguments = events.get()
            getattr(observer, method)(*arguments)

    box.flush = partial(box.exchange, say, events)
    done, taken = threading.Event(), threading.Event()
    taking = _repeat(box.flush, done)
    handing = _repeat(hand_over, taken)  # a thread of its own: a tracker that hangs holds no line up
    try:
        yield box
    finally:
        done.set()
        taking.join()
        taken.set()
        handing.join(CLOSE_S)
        if handing.is_alive():
            say(f"trackers have not sent everything within {CLOSE_S:.0f} s; ending without the rest")
        elif observer is not None:
            _close(observer, say)
        with suppress(RayActorError):
            ray.kill(box.actor)


def _close(observer: Observer, say: Say) -> None:
    closing = threading.Thread(target=observer.close, daemon=True)
    closing.start()
    closing.join(CLOSE_S)
    if closing.is_alive():
        say(f"trackers have not closed within {CLOSE_S:.0f} s; ending without the rest")


def _repeat(work: Callable[[], None], done: threading.Event) -> threading.Thread:
    """Do `work` twice a second until `done`, and once more then, in a thread of its own."""

    def run() -> None:
        while not done.wait(LOOK_S):
            work()
        work()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread
