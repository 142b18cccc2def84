"""Progress lines of long work."""

import time
from collections.abc import Callable, Sequence
from typing import Any

Say = Callable[[str], None]
"""Shows a line to the user."""
SHOW_SECONDS = 3.0
"""Shortest pause between two lines of work that moves."""
PAUSE_S, LONGEST_PAUSE_S = 9.0, 60.0


def pause_s(age: float) -> float:
    """Return the seconds between two lines of work that is `age` seconds old: 9, later 1 % of its age, at most 60.

    Ten seconds without a line look like a fault, and a worker's line takes up to one to the terminal. From a quarter of
    an hour on, less than 1 % of the age shows little change; a minute is the longest that anyone waits for a sign of
    life. A day has some 1,600 lines.
    """
    return min(LONGEST_PAUSE_S, max(PAUSE_S, 0.01 * age))


def silent(line: str) -> None:
    """A `Say` that shows nothing."""


class Progress:
    """Says "WHAT: DONE of TOTAL UNITS, rate, MB/s, time left", at first every 3 s, then as `pause_s` says.

    Args:
        say: shows a line.
        what, unit: name the work and what it counts.
        units: how many units a piece counts; 1 by default.
        size: bytes of a finished (piece, result); without it no MB/s is shown.
        total: of units; None = the sum over the pieces, which must then be a sequence.
        done: units that were done before this work.
    """

    def __init__(
        self,
        say: Say,
        what: str,
        unit: str,
        *,
        units: Callable[[Any], int] = lambda piece: 1,
        size: Callable[[Any, Any], int] = lambda piece, result: 0,
        total: int | None = None,
        done: int = 0,
    ) -> None:
        self._say, self._what, self._unit, self._units, self._size = say, what, unit, units, size
        self._total = total
        self._done = self._before = self._shown_count = done
        self._bytes = 0
        self._began = self._shown = time.monotonic()
        self._last = ""

    def begin(self, pieces: Any) -> None:
        """Start the clock; called by the pool before the first piece."""
        if self._total is None:
            assert isinstance(pieces, Sequence), "pieces without a length need a total"
            self._total = self._before + sum(self._units(piece) for piece in pieces)
        self._began = self._shown = time.monotonic()

    def add(self, piece: Any, result: Any) -> None:
        """Count a finished piece."""
        self._done += self._units(piece)
        self._bytes += self._size(piece, result)

    def tick(self) -> None:
        """Show a line if the last one is old enough."""
        age = self._shown - self._began
        pause = pause_s(age)
        if self._done != self._shown_count:
            pause = min(pause, max(SHOW_SECONDS, 0.1 * age))
        if time.monotonic() - self._shown >= pause:
            self._shown, self._shown_count = time.monotonic(), self._done
            self._last = self._line()
            self._say(self._last)

    def close(self) -> None:
        """Show the last line, unless it was just shown."""
        if self._line() != self._last:
            self._say(self._line())

    def _line(self) -> str:
        seconds = max(1e-9, time.monotonic() - self._began)
        rate, total = (self._done - self._before) / seconds, self._total or 0
        line = f"{self._what}: {self._done:,} of {total:,} {self._unit}"
        if self._bytes:
            line += f", {rate:,.0f} a second, {self._bytes / seconds / 1e6:,.1f} MB/s"
        if self._done < total:
            line += f", about {(total - self._done) / rate:,.0f} s left" if rate > 0 else f", {seconds:,.0f} s so far"
        return line
