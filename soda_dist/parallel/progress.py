"""Lines that say how far a long work is."""

import time
from collections.abc import Callable

Say = Callable[[str], None]


SHOW_SECONDS, LONGEST_SECONDS = 3.0, 30.0
"""Between two lines: a tenth of the time since the beginning, within these; the longest where no unit was done."""


class Progress:
    """Says "WHAT: DONE of TOTAL UNITS, MB/s, time left" every few seconds, more seldom while nothing gets done."""

    def __init__(self, say: Say, what: str, unit: str, total: int, *, done: int = 0) -> None:
        self._say, self._what, self._unit, self._total = say, what, unit, total
        self._done = self._before = self._said = done
        self._bytes = 0
        self._began = self._shown = time.monotonic()
        self._last = ""

    def add(self, count: int, size: int = 0) -> None:
        """Counts units, and the bytes written for them."""
        self._done += count
        self._bytes += size

    def tick(self) -> None:
        """Shows a line if the last one is old enough."""
        pause = min(LONGEST_SECONDS, max(SHOW_SECONDS, 0.1 * (self._shown - self._began)))
        if self._done == self._said:
            pause = LONGEST_SECONDS
        if time.monotonic() - self._shown >= pause:
            self._shown, self._said = time.monotonic(), self._done
            self._last = self._line()
            self._say(self._last)

    def close(self) -> None:
        """Shows the last line, unless it was just shown."""
        if self._line() != self._last:
            self._say(self._line())

    def _line(self) -> str:
        seconds = max(1e-9, time.monotonic() - self._began)
        rate = (self._done - self._before) / seconds
        line = f"{self._what}: {self._done:,} of {self._total:,} {self._unit}"
        if self._bytes:
            line += f", {rate:,.0f} a second, {self._bytes / seconds / 1e6:,.1f} MB/s"
        if rate > 0 and self._done < self._total:
            line += f", about {(self._total - self._done) / rate:,.0f} s left"
        return line
