"""The contract of pools, over each of them: every piece once, killed workers, errors, sharing, gangs, progress."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from soda_dist.errors import UserError
from soda_dist.parallel.local_pool import LocalPool
from soda_dist.parallel.pool import Pool, Seat, Shared, in_order
from soda_dist.parallel.progress import Progress, silent

WORKERS = 2
Make = Callable[..., Pool]


def _actor_pool(**options: Any) -> Pool:
    from soda_dist.distributed.runtime.actor_pool import ActorPool

    return ActorPool(say=silent, **{"actors": WORKERS, "start_timeout_s": 60, **options})


HERE = "this process"
OUTSIDE = [
    pytest.param("processes", marks=pytest.mark.slow),
    pytest.param("actors", marks=pytest.mark.ray),
]


def _maker(request: pytest.FixtureRequest, made: list[Pool]) -> Make:
    def make(setup: Any = None) -> Pool:
        if request.param == "actors":
            request.getfixturevalue("cluster")
            made.append(_actor_pool(setup=setup))
        else:
            made.append(LocalPool(0 if request.param == HERE else WORKERS, setup=setup))
        return made[-1]

    return make


@pytest.fixture(params=[HERE, *OUTSIDE])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Makes pools of one kind, and releases them."""
    made: list[Pool] = []
    yield _maker(request, made)
    for each in made:
        each.release()


@pytest.fixture(params=OUTSIDE)
def killable(request: pytest.FixtureRequest) -> Iterator[Make]:
    """As `make`, of the kinds whose workers are processes of their own."""
    made: list[Pool] = []
    yield _maker(request, made)
    for each in made:
        each.release()


def _hundred(device: str) -> int:
    assert device == "cpu"
    return 100


def _add(state: int, piece: int) -> int:
    return state + piece


def _process(state: Any, piece: int) -> int:
    return os.getpid()


def _count_setups(folder: Path, device: str) -> int:
    (folder / f"setup-{time.monotonic_ns()}-{os.getpid()}").touch()
    return 0


def _add_in_company(folder: Path, state: int, piece: int) -> tuple[int, int]:
    """Does not end before two workers have begun a piece."""
    (folder / str(os.getpid())).touch()
    deadline = time.monotonic() + 60
    while len(list(folder.iterdir())) < WORKERS and time.monotonic() < deadline:
        time.sleep(0.01)
    return state + piece, os.getpid()


def _die_once(folder: Path, dies_at: int, state: int, piece: int) -> int:
    """Kill this worker at one piece, the first time that it is done."""
    marker = folder / "died"
    if piece == dies_at and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return state + piece


def _die(state: int, piece: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_in_setup_once(folder: Path, device: str) -> int:
    marker = folder / "died"
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 100


def _mistaken(state: int, piece: int) -> None:
    raise UserError("field", piece, "something else", "change it")


def _mistaken_setup(device: str) -> None:
    raise UserError("weights", device, "others", "change them")


def _wrong(state: int, piece: int) -> None:
    raise ZeroDivisionError("in a piece")


def _shared_sum(shared: Shared[np.ndarray], state: Any, piece: int) -> float:
    return float(shared.get().sum()) + piece


def _halves(whole: list[int]) -> list[list[int]]:
    return [whole[: len(whole) // 2], whole[len(whole) // 2 :]]


def _sum(state: Any, piece: list[int]) -> int:
    return sum(piece)


def test_every_piece_is_done_once_and_the_pool_works_again(make: Make) -> None:
    pool = make(_hundred)
    assert sorted(pool.completed(_add, range(40))) == [(i, 100 + i) for i in range(40)]
    assert pool.map(_add, iter([7, 8])) == [107, 108]
    assert pool.map(_add, []) == []
    assert pool.call(_add, 5) == 105


def test_results_come_in_the_order_of_the_pieces(make: Make) -> None:
    pool = make(_hundred)
    assert pool.map(_add, [9, 3, 5]) == [109, 103, 105]
    assert list(in_order(iter([(2, "c"), (0, "a"), (1, "b")]))) == ["a", "b", "c"]
    assert pool.map_split(_sum, [[1, 2, 3, 4], [], [5, 6]], _halves) == [[3, 7], [0, 0], [5, 6]]


def test_the_setup_runs_once_in_each_worker_and_anew_after_a_release(make: Make, tmp_path: Path) -> None:
    pool = make().with_state(partial(_count_setups, tmp_path))
    try:
        processes = set(pool.map(_process, range(20)))
        assert len(list(tmp_path.iterdir())) == len(processes) <= WORKERS
        before = len(processes)
        pool.release()
        assert pool.map(_process, [0])
        assert len(list(tmp_path.iterdir())) > before
    finally:
        pool.release()


def test_work_is_done_outside_this_process(killable: Make) -> None:
    assert killable().call(_process, 0) != os.getpid()


def test_all_workers_take_part(killable: Make, tmp_path: Path) -> None:
    results = killable(_hundred).map(partial(_add_in_company, tmp_path), range(40))
    assert [total for total, _ in results] == [100 + i for i in range(40)]
    assert len({process for _, process in results}) == WORKERS


@pytest.mark.parametrize("dies_at", [0, 11, 39])
def test_the_pieces_of_a_killed_worker_are_done_again(killable: Make, tmp_path: Path, dies_at: int) -> None:
    pool = killable(_hundred)
    assert pool.map(partial(_die_once, tmp_path, dies_at), range(40)) == [100 + i for i in range(40)]
    assert (tmp_path / "died").exists()
    assert pool.map(_add, [1]) == [101]


def test_a_worker_killed_in_its_setup_is_replaced(killable: Make, tmp_path: Path) -> None:
    assert killable(partial(_die_in_setup_once, tmp_path)).map(_add, [5]) == [105]


def test_a_piece_that_kills_every_worker_ends_the_work(killable: Make) -> None:
    with pytest.raises(RuntimeError, match=r"\b3\b"):
        killable(_hundred).map(_die, [1])


def test_a_users_mistake_in_a_job_or_a_setup_is_one_here(make: Make) -> None:
    with pytest.raises(UserError) as caught:
        make(_hundred).map(_mistaken, [3])
    assert type(caught.value) is UserError and str(caught.value) == "field: got 3; allowed: something else; change it"
    with pytest.raises(UserError, match="weights: got cpu"):
        make(_mistaken_setup).map(_add, [3])


def test_another_error_keeps_its_type_and_place(make: Make) -> None:
    with pytest.raises(ZeroDivisionError, match="in a piece") as caught:
        make(_hundred).map(_wrong, [3])
    text = str(caught.value) + str(caught.value.__cause__) + "".join(str(entry) for entry in caught.traceback)
    assert "test_pools.py" in text and "_wrong" in text


def test_shared_values_reach_every_worker(make: Make) -> None:
    pool = make()
    shared = pool.share(np.arange(1000.0))
    assert pool.map(partial(_shared_sum, shared), [0, 1, 2]) == [499500.0 + i for i in range(3)]


def test_progress_counts_units_and_bytes_of_all_pieces(make: Make) -> None:
    said: list[str] = []
    progress = Progress(
        said.append, "adding", "numbers", units=lambda piece: piece, size=lambda piece, result: 10**9, done=5
    )
    make(_hundred).map(_add, [1, 2, 3], progress)
    assert said[-1].startswith("adding: 11 of 11 numbers, ") and "MB/s" in said[-1]


def _first_rank(seat: Seat, piece: int) -> int:
    assert seat.rank == piece
    return seat.size


def _no_meeting(host: str, size: int) -> tuple[Any, Any]:
    return host, size


def test_a_gang_has_a_seat_for_each_piece(make: Make) -> None:
    pool = make()
    size = pool.gang_size(2, "evaluation.probe.workers")
    assert pool.gang(_first_rank, list(range(size)), _no_meeting) == size


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
class TestActors:
    """What only a cluster has."""

    def test_actors_without_room_are_the_users_to_know(self) -> None:
        with pytest.raises(UserError, match="needs 1000 CPU"), _actor_pool(needs={"CPU": 1000}) as pool:
            pool.map(_add, [1])

    def test_actors_that_wait_too_long_for_a_busy_cluster_are_the_users_to_know(self) -> None:
        said: list[str] = []
        with _actor_pool(setup=_hundred, needs={"CPU": 4}, actors=1) as holder:
            holder.map(_add, [1])
            message = "no actor running within 1 s, each with 4 CPU"
            busy = _actor_pool(needs={"CPU": 4}, start_timeout_s=1)
            with pytest.raises(UserError, match=message), busy as pool:
                pool.map(_add, [1], Progress(said.append, "waiting", "pieces"))

    def test_work_begins_though_only_some_actors_find_room(self) -> None:
        with _actor_pool(setup=_hundred, needs={"CPU": 3}) as pool:  # two of three CPUs each do not fit into four
            assert pool.map(_add, range(10)) == [100 + i for i in range(10)]

    def test_an_actor_that_dies_between_two_works_is_replaced(self) -> None:
        with _actor_pool(setup=_hundred, actors=1) as pool:
            os.kill(pool.call(_process, 0), signal.SIGKILL)
            assert pool.map(_add, [1]) == [101]
