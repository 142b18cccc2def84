"""Waiting for an object store that fails for a while: what is asked of it again, after which pauses, and the count.

The AWS SDK inside pyarrow tries a request five times within about a second and says nothing of it. A store that
throttles, or a network that is gone, may need longer: what then still fails is tried again after growing pauses with
jitter, half a minute in all. Each is a line in the process's log; a data worker's are counted, and the training process
reports their sum.
"""

import logging
import random
import threading
from collections.abc import Callable
from time import sleep
from typing import TypeVar

from soda_dist.errors import UserError

PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Each is drawn between half of this and one and a half: workers that failed together must not come back together."""
TRANSIENT_CODES = {
    *("NETWORK_CONNECTION", "SLOW_DOWN", "THROTTLING", "INTERNAL_FAILURE", "SERVICE_UNAVAILABLE", "REQUEST_TIMEOUT"),
    *("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "INTERNAL", "ABORTED"),
}
"""Codes of pyarrow's S3 and Google Cloud Storage errors that may pass by themselves."""

Result = TypeVar("Result")
logger = logging.getLogger(__name__)
_jitter = random.Random()


class _Counter:
    """A number that several threads raise."""

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
    """A failure of the store that may pass by itself."""


def retry(act: Callable[[], Result]) -> Result:
    """`act()`, called again while it raises `StoreError`; raises the last one."""
    for number, most in enumerate(PAUSES_S, 1):
        try:
            return act()
        except StoreError as error:
            pause = most * _jitter.uniform(0.5, 1.5)
            again = f"trying again in {pause:.1f} s ({number} of {len(PAUSES_S)})"
            logger.warning("%s: got %s; %s", error.field, error.got, again)
            _retries.add()
            sleep(pause)
    return act()


def retries_since_last() -> int:
    """How often this process tried again since this function was called before."""
    return _retries.take()
