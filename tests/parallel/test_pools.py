"""The contract of pools, over each of them: every piece once, killed workers, errors, sharing, gangs, progress."""

import os
import signal
import time
from collections.abc import Iterator
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


def _actor_pool(setup: Any) -> Pool:
    from soda_dist.distributed.runtime.actor_pool import ActorPool

    return ActorPool(say=silent, needs={"CPU": 0.25}, actors=WORKERS, start_timeout_s=60, setup=setup)


HERE = "this process"
OUTSIDE = [
    pytest.param("processes", marks=pytest.mark.slow),
    pytest.param("actors", marks=pytest.mark.ray),
]


def _made(kind: str, request: pytest.FixtureRequest, setup: Any) -> Pool:
    if kind == "actors":
        request.getfixturevalue("cluster")
        return _actor_pool(setup)
    return LocalPool(0 if kind == HERE else WORKERS, setup=setup)


@pytest.fixture(scope="module", params=[HERE, *OUTSIDE])
def pool(request: pytest.FixtureRequest) -> Iterator[Pool]:
    """A pool of each kind, with 100 as its state."""
    with _made(request.param, request, _hundred) as made:
        yield made


@pytest.fixture(scope="module", params=OUTSIDE)
def killable(request: pytest.FixtureRequest) -> Iterator[Pool]:
    """As `pool`, of the kinds whose workers are processes of their own."""
    with _made(request.param, request, _hundred) as made:
        yield made


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


def test_every_piece_is_done_once_and_the_pool_works_again(pool: Pool) -> None:
    assert sorted(pool.completed(_add, range(40))) == [(i, 100 + i) for i in range(40)]
    assert pool.map(_add, iter([7, 8])) == [107, 108]
    assert pool.map(_add, []) == []
    assert pool.call(_add, 5) == 105


def test_results_come_in_the_order_of_the_pieces(pool: Pool) -> None:
    assert pool.map(_add, [9, 3, 5]) == [109, 103, 105]
    assert list(in_order(iter([(2, "c"), (0, "a"), (1, "b")]))) == ["a", "b", "c"]
    assert pool.map_split(_sum, [[1, 2, 3, 4], [], [5, 6]], _halves) == [[3, 7], [0, 0], [5, 6]]


def test_a_caller_that_wants_no_more_leaves_nothing_behind(pool: Pool) -> None:
    first, _ = next(pool.completed(_add, range(40)))
    assert 0 <= first < 40
    assert pool.map(_add, [1, 2]) == [101, 102]


def test_a_users_mistake_in_a_job_is_one_here_and_the_pool_works_on(pool: Pool) -> None:
    with pytest.raises(UserError) as caught:
        pool.map(_mistaken, [3, 4, 5])
    assert type(caught.value) is UserError
    assert str(caught.value).startswith("field: got ") and str(caught.value).endswith("something else; change it")
    assert pool.map(_add, [1]) == [101]


def test_another_error_keeps_its_type_and_place(pool: Pool) -> None:
    with pytest.raises(ZeroDivisionError, match="in a piece") as caught:
        pool.map(_wrong, [3])
    text = str(caught.value) + str(caught.value.__cause__) + "".join(str(entry) for entry in caught.traceback)
    assert "test_pools.py" in text and "_wrong" in text


def test_shared_values_reach_every_worker(pool: Pool) -> None:
    shared = pool.share(np.arange(1000.0))
    assert pool.map(partial(_shared_sum, shared), [0, 1, 2]) == [499500.0 + i for i in range(3)]


def test_progress_counts_units_and_bytes_of_all_pieces(pool: Pool) -> None:
    said: list[str] = []
    progress = Progress(
        said.append, "adding", "numbers", units=lambda piece: piece, size=lambda piece, result: 10**9, done=5
    )
    pool.map(_add, [1, 2, 3], progress)
    assert said[-1].startswith("adding: 11 of 11 numbers, ") and "MB/s" in said[-1]


def test_the_setup_runs_once_in_each_worker_and_anew_after_a_release(pool: Pool, tmp_path: Path) -> None:
    with pool.with_state(partial(_count_setups, tmp_path)) as counted:
        processes = set(counted.map(_process, range(20)))
        before = len(list(tmp_path.iterdir()))
        assert before == len(processes) <= WORKERS
        counted.release()
        assert counted.map(_process, [0])
        assert len(list(tmp_path.iterdir())) > before


def test_a_users_mistake_in_a_setup_is_one_here(pool: Pool) -> None:
    with pytest.raises(UserError, match="weights: got cpu"), pool.with_state(_mistaken_setup) as mistaken:
        mistaken.map(_add, [3])


def test_all_workers_take_part_outside_this_process(killable: Pool, tmp_path: Path) -> None:
    results = killable.map(partial(_add_in_company, tmp_path), range(40))
    assert [total for total, _ in results] == [100 + i for i in range(40)]
    processes = {process for _, process in results}
    assert len(processes) == WORKERS and os.getpid() not in processes


@pytest.mark.parametrize("dies_at", [0, 11, 39])
def test_the_pieces_of_a_killed_worker_are_done_again(killable: Pool, tmp_path: Path, dies_at: int) -> None:
    assert killable.map(partial(_die_once, tmp_path, dies_at), range(40)) == [100 + i for i in range(40)]
    assert (tmp_path / "died").exists()
    assert killable.map(_add, [1]) == [101]


def test_a_worker_killed_in_its_setup_is_replaced(killable: Pool, tmp_path: Path) -> None:
    with killable.with_state(partial(_die_in_setup_once, tmp_path)) as dying:
        assert dying.map(_add, [5]) == [105]


def test_a_piece_that_kills_every_worker_ends_the_work(killable: Pool) -> None:
    with pytest.raises(RuntimeError, match=r"\b3\b"), killable.with_state(_hundred) as doomed:
        doomed.map(_die, [1])


def _first_rank(seat: Seat, piece: int) -> int:
    assert seat.rank == piece
    return seat.size


def _no_meeting(host: str, size: int) -> tuple[Any, Any]:
    return host, size


def test_a_gang_has_a_seat_for_each_piece(pool: Pool) -> None:
    size = pool.gang_size(2, "evaluation.probe.workers")
    assert pool.gang(_first_rank, list(range(size)), _no_meeting) == size
