"""Retries of object-store requests, with backoff and a count.

The AWS SDK inside pyarrow silently retries a request five times within about a second. A store that throttles or a
network outage may last longer, so remaining failures are retried with growing, jittered pauses, about 30 s in all. Each
retry is logged; those of data workers are counted, and the training process reports their sum.
"""

import logging
import random
import threading
from collections.abc import Callable
from time import sleep
from typing import TypeVar

from soda_dist.errors import UserError

PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Each is scaled by 0.5..1.5 at random, so that workers that failed together do not retry together."""
TRANSIENT_CODES = {
    *("NETWORK_CONNECTION", "SLOW_DOWN", "THROTTLING", "INTERNAL_FAILURE", "SERVICE_UNAVAILABLE", "REQUEST_TIMEOUT"),
    *("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "INTERNAL", "ABORTED"),
}
"""S3 and Google Cloud Storage error codes, as in pyarrow's messages, that are worth a retry."""

Result = TypeVar("Result")
logger = logging.getLogger(__name__)
_jitter = random.Random()


class _Counter:
    """Thread-safe counter."""

    def __init__(self) -> None:
        self._lock, self._count = threading.Lock(), 0

    def add(self) -> None:
        with self._lock:
            self._count += 1

    def take(self) -> int:
        with self._lock:
            count, self._count = self._count, 0
        return count


_retries = _Counter()


class StoreError(UserError):
    """A transient failure of the store."""


def retry(act: Callable[[], Result]) -> Result:
    """Call `act`, again after each `StoreError`; raise the last one."""
    for number, most in enumerate(PAUSES_S, 1):
        try:
            return act()
        except StoreError as error:
            pause = most * _jitter.uniform(0.5, 1.5)
            plan = f"retrying in {pause:.1f} s ({number} of {len(PAUSES_S)})"
            logger.warning("%s: got %s; %s", error.field, error.got, plan)
            _retries.add()
            sleep(pause)
    return act()


def retries_since_last() -> int:
    """Return and reset this process's number of retries."""
    return _retries.take()
