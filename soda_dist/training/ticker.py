"""A run's lines by time: the latest log line, or counters alone, so that no line waits for the device."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from soda_dist.parallel.heartbeat import ticking
from soda_dist.parallel.progress import Say, pause_s


class Ticker:
    """Shows a line as often as `pause_s` says: the newest log line, or else the step, the rate and the time left.

    Metrics are logged at their own steps; one of these lines is shown in each pause. The first is shown at once.

    Args:
        say: shows a line.
        step, total: steps before, and of the whole run.
        batch: view pairs of a step.
    """

    def __init__(self, say: Say, *, step: int, total: int, batch: int) -> None:
        self._say, self._first, self._total, self._batch = say, step, total, batch
        self._step = self._shown_step = step
        self._began = self._shown = self._since = time.monotonic()
        self._doing, self._waiting = "", ""
        self._logged = False
        self._lock = threading.Lock()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Look at the clock until the block ends."""
        with ticking(self.tick):
            yield

    def doing(self, what: str) -> None:
        """Name what the process does, for lines of a step that takes long."""
        self._doing, self._since = what, time.monotonic()

    def stepped(self) -> None:
        """Count a step."""
        self._step += 1

    def log(self, line: str, *, now: bool = False) -> None:
        """Show a log line `now`, or when a line is due, unless a newer one replaces it."""
        with self._lock:
            if now or not self._logged or self._due():
                self._show(line)
            else:
                self._waiting = line
            self._logged = True

    def tick(self) -> None:
        """Show a line if one is due."""
        with self._lock:
            if self._due():
                self._show(self._waiting or self.counters())

    def _due(self) -> bool:
        now = time.monotonic()
        return now - self._shown >= pause_s(now - self._began)

    def _show(self, line: str) -> None:
        self._waiting, self._shown, self._shown_step = "", time.monotonic(), self._step
        self._say(line)

    def counters(self) -> str:
        """Format the step, the rate since the last line and the time left; or what has taken so long."""
        now, line = time.monotonic(), f"step {self._step}/{self._total}"
        steps = self._step - self._shown_step
        if steps == 0:
            return f"{line}  {self._doing}: {now - self._since:.0f} s"
        rate = steps * self._batch / max(1e-9, now - self._shown)
        return f"{line}  {rate_text(rate)}  left {duration(self.remaining())}"

    def remaining(self) -> float:
        """Estimate the seconds until the last step, at the mean rate since the start; after the first step."""
        return (time.monotonic() - self._began) / (self._step - self._first) * (self._total - self._step)


def rate_text(rate: float) -> str:
    """Format view pairs per second."""
    return f"{rate:.{0 if rate >= 10 else 2}f} pairs/s"


def duration(seconds: float) -> str:
    """Format seconds, or minutes from two on, or hours from two on."""
    if seconds >= 7200:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
