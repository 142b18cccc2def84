"""Lines from workers to the user's terminal without Ray's log prefixes; and a fatal error of any worker."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from soda_dist.parallel.progress import Say


class _Board:
    """Holds lines until the driver takes them, and the first error that a retry cannot mend."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._fatal: Exception | None = None

    def put(self, line: str) -> None:
        self._lines.append(line)

    def take(self) -> list[str]:
        lines, self._lines = self._lines, []
        return lines

    def fail(self, error: Exception) -> None:
        self._fatal = self._fatal or error

    def fatal(self) -> Exception | None:
        return self._fatal


@contextmanager
def board(say: Say) -> Iterator[Any]:
    """Run a board actor and show its lines through `say` twice a second until the block ends."""
    actor: Any = ray.remote(num_cpus=0)(_Board).remote()
    done = threading.Event()

    def show() -> None:
        while not done.wait(0.5):
            for line in ray.get(actor.take.remote()):
                say(line)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield actor
    finally:
        done.set()
        thread.join()
        for line in ray.get(actor.take.remote()):
            say(line)
        ray.kill(actor)
