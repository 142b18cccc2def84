"""Many independent calls as Ray tasks, a few at a time, and a line that says how far they are."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray
from ray.exceptions import RayTaskError

from soda_dist.errors import UserError

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
