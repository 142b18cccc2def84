"""SIGINT and SIGTERM: ended at once, or taken as a wish to stop."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(BaseException):
    """A signal ends the command; its message is the line to show.

    Like KeyboardInterrupt it is not an `Exception`, so that nothing takes it for a failure.
    """

    def __init__(self, signum: signal.Signals, line: str) -> None:
        super().__init__(line)
        self.signal = signum

    @property
    def exit_code(self) -> int:
        return 128 + self.signal


RESUME = "rerun the same command to resume from the last checkpoint"


class Interrupts:
    """The signal that asked to stop, None before one; a second one raises `Interrupted`."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def take(self, signum: int, frame: FrameType | None = None) -> None:
        """Handle a signal."""
        if self.signal is not None:
            end(signum)
        self.signal = signal.Signals(signum)


def end(signum: int, frame: FrameType | None = None) -> None:
    """Raise `Interrupted`: a handler of signals."""
    found = signal.Signals(signum)
    raise Interrupted(found, f"interrupted by {found.name}: {RESUME}")


@contextmanager
def ending() -> Iterator[None]:
    """Let SIGTERM and SIGINT raise `Interrupted`, until the block ends; without effect outside the main thread."""
    with _handling(end):
        yield


@contextmanager
def wished() -> Iterator[Interrupts]:
    """Give an `Interrupts` that SIGTERM and SIGINT set, until the block ends."""
    found = Interrupts()
    with _handling(found.take):
        yield found


@contextmanager
def _handling(handler: object) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.signal(each, handler) for each in (signal.SIGTERM, signal.SIGINT)}  # type: ignore[arg-type]
    try:
        yield
    finally:
        for each, old in before.items():
            signal.signal(each, signal.SIG_DFL if old is None else old)
