"""Actor pools on a cluster without room, or with little; tests/parallel has the contract of all pools."""

import os
import signal
from typing import Any

import pytest

from soda_dist.errors import UserError
from soda_dist.parallel.pool import Held
from soda_dist.parallel.progress import Progress, silent

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]


def _pool(**options: Any) -> Any:
    from soda_dist.distributed.runtime.actor_pool import ActorPool

    return ActorPool(say=silent, setup=Held(100), **{"actors": 2, "start_timeout_s": 60, **options})


def _add(state: int, piece: int) -> int:
    return state + piece


def _process(state: int, piece: int) -> int:
    return os.getpid()


def test_actors_without_room_are_the_users_to_know() -> None:
    with pytest.raises(UserError, match="needs 1000 CPU"), _pool(needs={"CPU": 1000}) as pool:
        pool.map(_add, [1])


def test_actors_that_wait_too_long_for_a_busy_cluster_are_the_users_to_know() -> None:
    said: list[str] = []
    with _pool(needs={"CPU": 4}, actors=1) as holder:
        holder.map(_add, [1])
        busy = _pool(needs={"CPU": 4}, start_timeout_s=1)
        with pytest.raises(UserError, match="no actor running within 1 s, each with 4 CPU"), busy as pool:
            pool.map(_add, [1], Progress(said.append, "waiting", "pieces"))


def test_work_begins_though_only_some_actors_find_room() -> None:
    with _pool(needs={"CPU": 3}) as pool:  # two of three CPUs each do not fit into four
        assert pool.map(_add, range(10)) == [100 + i for i in range(10)]


def test_an_actor_that_dies_between_two_works_is_replaced() -> None:
    with _pool(actors=1) as pool:
        os.kill(pool.call(_process, 0), signal.SIGKILL)
        assert pool.map(_add, [1]) == [101]
