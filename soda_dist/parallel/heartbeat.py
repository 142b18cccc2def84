"""A line now and then from work that would otherwise be silent."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from soda_dist.parallel.progress import Say, pause_s

LOOK_S = 0.5
"""Between two looks at the clock."""
GRACE_S = 1.0
"""By which lines that say more go first."""


@contextmanager
def ticking(tick: Callable[[], None], every_s: float = LOOK_S) -> Iterator[None]:
    """Call `tick` every `every_s` seconds, in a thread of its own, until the block ends."""
    done = threading.Event()

    def run() -> None:
        while not done.wait(every_s):
            tick()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class Heartbeat:
    """Says that a command still runs if it has shown a line, and then none for `pause_s` of its age and a second.

    A command that says nothing before its result stays silent.
    """

    def __init__(self) -> None:
        self._began = self._last = self._beat = 0.0

    def heard(self) -> None:
        """Note that a line was shown."""
        self._last = self._beat = time.monotonic()
        self._began = self._began or self._last

    def tick(self, say: Say) -> None:
        """Say how long it has been silent, if the last line is old enough."""
        now = time.monotonic()
        if self._began and now - self._beat >= pause_s(now - self._began) + GRACE_S:
            self._beat = now
            say(f"still running, {now - self._last:.0f} s since the last line")
