"""Many independent calls as Ray tasks, a few at a time, and a line that says how far they are."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray
from ray.exceptions import RayTaskError

from soda_dist.distributed.runtime.cluster import Say
from soda_dist.errors import UserError

SHOW_SECONDS, LONGEST_SECONDS = 3.0, 30.0
"""Between two lines: a tenth of the time since the beginning, within these; the longest where no unit was done."""
RETRIES = 10
"""Times that a call is made again after its machine was lost."""


def farm_out(
    function: Callable[..., Any], calls: Iterable[tuple], tick: Callable[[], None], *, cpus: int = 1
) -> Iterator[tuple[int, Any]]:
    """(number of the call, its result) for every call of `cpus` CPUs, in the order in which they end.

    Twice as many calls as find room are under way, so that a cluster that grows gets more. `tick` is called about once
    a second.

    Raises:
        UserError: a call met one; the other calls are cancelled.
    """
    task = ray.remote(num_cpus=cpus, max_retries=RETRIES)(function)
    running: dict[Any, int] = {}
    numbered = enumerate(calls)
    try:
        while True:
            limit = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)) // cpus)
            while len(running) < limit and (call := next(numbered, None)):
                running[task.remote(*call[1])] = call[0]
            if not running:
                return
            ended, _ = ray.wait(list(running), timeout=1.0)
            for reference in ended:
                number = running.pop(reference)
                yield number, _result(reference)
            tick()
    finally:
        for reference in running:
            ray.cancel(reference)


def _result(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise


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
