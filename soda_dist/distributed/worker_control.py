"""A training process beside its training: signs of life, orders from outside, and an end when nothing moves."""

import faulthandler
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from soda_dist.distributed.runtime.mailbox import Beat
from soda_dist.parallel.heartbeat import ticking
from soda_dist.training.context import Ask

BEAT_S = 1.0
OTHERS_S = 5.0
"""Wait for the stacks of the other processes."""
_TERMINATED = threading.Event()


def leave_on_sigterm() -> None:
    """Make SIGTERM ask this process to leave after its step; call in its main thread."""
    _TERMINATED.clear()
    signal.signal(signal.SIGTERM, lambda *_: _TERMINATED.set())


@dataclass(frozen=True)
class Stacks:
    """The Python stacks of a process in which nothing moved."""

    rank: int
    text: str


class Control:
    """Agrees with the other processes on what is asked, without a wait: what one hears now, all do two steps later.

    The sum over processes runs beside the step, on a group of its own.

    Args:
        node: Ray's ID of this process's node.
        send: sends a sign of life and returns the driver's order; None = no answer in time.
        report: sends a fact to the driver.
        hang_timeout_s: time without a finished step after which the process reports its stacks and ends. It counts from
            the first step on.
    """

    def __init__(
        self,
        node: str,
        send: Callable[[Beat], Ask | None],
        report: Callable[[Any], None],
        *,
        rank: int,
        world: int,
        hang_timeout_s: float,
    ) -> None:
        self._node, self._send, self._report = node, send, report
        self._rank, self._hang_timeout_s = rank, hang_timeout_s
        self._group: Any = dist.new_group(backend="gloo") if world > 1 else None
        self._pending: tuple[Any, torch.Tensor] | None = None
        self._ask = Ask.NOTHING
        self.step: int | None = None
        self._moved = time.monotonic()

    def asked(self, step: int) -> Ask:
        """See `WorkerContext.asked`."""
        self.step, self._moved = step, time.monotonic()
        own = max(self._ask, Ask.LEAVE if _TERMINATED.is_set() else Ask.NOTHING)
        if self._group is None:
            return own
        found = Ask.NOTHING
        if self._pending is not None:
            work, held = self._pending
            work.wait()
            found = Ask(int(held))
        held = torch.tensor(int(own))
        self._pending = dist.all_reduce(held, dist.ReduceOp.MAX, group=self._group, async_op=True), held
        return found

    def beating(self) -> AbstractContextManager[None]:
        """Send signs of life in a thread until the block ends."""
        return ticking(self._beat, BEAT_S)

    def _beat(self) -> None:
        ask = self._send(Beat(self._rank, self._node, self.step))
        self._ask = self._ask if ask is None else ask
        if self.step is not None and time.monotonic() - self._moved > self._hang_timeout_s:
            self._report(Stacks(self._rank, stacks()))
            time.sleep(OTHERS_S)
            os.kill(os.getpid(), signal.SIGKILL)  # its threads may hold anything


def stacks() -> str:
    """Return the Python stacks of all threads of this process, as text."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()
