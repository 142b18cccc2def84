"""Actors that are lost, refused or slow: each piece is done once, or the user is told why not."""

import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from soda_dist.distributed.runtime.actor_pool import Crew
from soda_dist.errors import UserError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]


def _crew(setup, said: list[str], actors: int = 2, cpus: float = 1, timeout: float = 60) -> Crew:
    return Crew(setup=setup, actors=actors, resources={"num_cpus": cpus}, start_timeout_s=timeout, say=said.append)


def _ready() -> int:
    return 100


def _add(state: int, piece: int) -> int:
    return state + piece


def _add_in_company(folder: Path, state: int, piece: int) -> tuple[int, int]:
    """Does not end before two actors have begun a piece."""
    (folder / str(os.getpid())).touch()
    deadline = time.monotonic() + 60
    while len(list(folder.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    return state + piece, os.getpid()


def _die_once(folder: Path, dies_at: int, state: int, piece: int) -> int:
    """Kill this actor at one piece, the first time that it is done."""
    marker = folder / "died"
    if piece == dies_at and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return state + piece


def _die(state: int, piece: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_at_start(folder: Path) -> int:
    marker = folder / "died"
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 100


def _never_ready() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _mistaken(state: int, piece: int) -> None:
    raise UserError("field", piece, "something else", "change it")


def _wrong(state: int, piece: int) -> None:
    raise ZeroDivisionError("in a piece")


def _nothing() -> None:
    return None


def test_every_piece_is_done_once_by_all_actors_and_the_crew_works_again(tmp_path) -> None:
    with _crew(_ready, []) as crew:
        results = list(crew.share_out(partial(_add_in_company, tmp_path), list(range(40)), _nothing))
        assert sorted((number, total) for number, (total, _) in results) == [(i, 100 + i) for i in range(40)]
        assert len({process for _, (_, process) in results}) == 2
        assert list(crew.share_out(_add, [7], _nothing)) == [(0, 107)]
        assert list(crew.share_out(_add, [], _nothing)) == []


def test_the_pieces_of_a_lost_actor_are_done_again(tmp_path) -> None:
    said: list[str] = []
    with _crew(_ready, said) as crew:
        results = list(crew.share_out(partial(_die_once, tmp_path, 11), list(range(40)), _nothing))
    assert sorted(results) == [(i, 100 + i) for i in range(40)]
    assert (tmp_path / "died").exists() and any("an actor was lost" in line for line in said)


def test_a_single_actor_that_is_lost_is_replaced(tmp_path) -> None:
    with _crew(_ready, [], actors=1) as crew:
        results = list(crew.share_out(partial(_die_once, tmp_path, 0), list(range(5)), _nothing))
    assert sorted(results) == [(i, 100 + i) for i in range(5)]


def test_an_actor_lost_while_it_starts_is_replaced(tmp_path) -> None:
    with _crew(partial(_die_at_start, tmp_path), [], actors=1) as crew:
        assert list(crew.share_out(partial(_die_once, tmp_path, -1), [5], _nothing)) == [(0, 105)]


def test_a_piece_that_loses_every_actor_ends_the_work() -> None:
    with pytest.raises(RuntimeError, match="3 actors were lost at the same work"), _crew(_ready, []) as crew:
        list(crew.share_out(_die, [1], _nothing))


def test_actors_that_never_start_end_the_work() -> None:
    with pytest.raises(RuntimeError, match="3 actors were lost"), _crew(_never_ready, []) as crew:
        list(crew.share_out(_die, [1], _nothing))


def test_actors_that_the_cluster_has_no_room_for_are_the_users_to_know() -> None:
    ticks: list[int] = []
    message = "no actor ready within 2 s, each with num_cpus=1000"
    with pytest.raises(UserError, match=message), _crew(_ready, [], cpus=1000, timeout=2) as crew:
        list(crew.share_out(_add, [1], lambda: ticks.append(1)))
    assert ticks, "the caller must be able to show that it waits"


def test_work_begins_though_only_some_actors_find_room() -> None:
    with _crew(_ready, [], actors=2, cpus=3) as crew:  # two of three CPUs each do not fit into four
        assert len(list(crew.share_out(_add, list(range(10)), _nothing))) == 10


def test_a_users_mistake_in_an_actor_is_one_here() -> None:
    with pytest.raises(UserError) as caught, _crew(_ready, []) as crew:
        list(crew.share_out(_mistaken, [3], _nothing))
    assert type(caught.value) is UserError and str(caught.value) == "field: got 3; allowed: something else; change it"


def test_another_error_in_an_actor_keeps_its_type_and_place() -> None:
    with pytest.raises(ZeroDivisionError, match=r"test_crew\.py"), _crew(_ready, []) as crew:
        list(crew.share_out(_wrong, [3], _nothing))
