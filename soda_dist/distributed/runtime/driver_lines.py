"""What workers tell the driver: lines for the user, without Ray's log prefixes, metrics, and fatal errors."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray

from soda_dist.parallel.progress import Say
from soda_dist.training.observers.observer import Observer

LOOK_S = 0.5
CLOSE_S = 120.0
"""The longest wait for what observers still send when the run has ended."""
Event = tuple[str, tuple[Any, ...]]
"""Method of an `Observer` and its arguments."""


class _Board:
    """Holds lines and metrics until the driver takes them, and the first error that a retry cannot mend."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._events: list[Event] = []
        self._fatal: Exception | None = None

    def put(self, line: str) -> None:
        self._lines.append(line)

    def take(self) -> list[str]:
        lines, self._lines = self._lines, []
        return lines

    def observe(self, event: Event) -> None:
        self._events.append(event)

    def take_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def fail(self, error: Exception) -> None:
        self._fatal = self._fatal or error

    def fatal(self) -> Exception | None:
        return self._fatal


class Relay:
    """An observer in a training process: hands everything to the driver's, so that no tracker can hold training up."""

    def __init__(self, board: Any) -> None:
        self._board = board

    def start(self, step: int) -> None:
        self._board.observe.remote(("start", (step,)))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._board.observe.remote(("metrics", (step, dict(values))))

    def picture(self, step: int, name: str, png: bytes) -> None:
        self._board.observe.remote(("picture", (step, name, png)))

    def close(self) -> None:
        """Leave the end to the driver, which outlives this process."""


@contextmanager
def board(say: Say, observer: Observer | None = None) -> Iterator[Any]:
    """Run a board actor; show its lines through `say` and hand its metrics to `observer`, until the block ends."""
    actor: Any = ray.remote(num_cpus=0)(_Board).remote()

    def show() -> None:
        for line in ray.get(actor.take.remote()):
            say(line)

    def hand_over() -> None:
        assert observer is not None
        for method, arguments in ray.get(actor.take_events.remote()):
            getattr(observer, method)(*arguments)

    def close() -> None:
        assert observer is not None
        hand_over()
        observer.close()

    done = threading.Event()
    lines = _repeat(show, done)
    handed = None if observer is None else _repeat(hand_over, done, close)
    try:
        yield actor
    finally:
        done.set()
        lines.join()
        show()
        if handed is not None:
            handed.join(CLOSE_S)
            if handed.is_alive():
                say(f"trackers have not sent everything within {CLOSE_S:.0f} s; ending without the rest")
        ray.kill(actor)


def _repeat(
    work: Callable[[], None], done: threading.Event, at_end: Callable[[], None] = lambda: None
) -> threading.Thread:
    """Do `work` twice a second until `done`, then `at_end`, in a thread of its own."""

    def run() -> None:
        while not done.wait(LOOK_S):
            work()
        at_end()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread
