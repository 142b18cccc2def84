"""Progress lines: seldom, and with the time that is left."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from soda_dist.parallel import progress as module
from soda_dist.parallel.local_pool import LocalPool
from soda_dist.parallel.progress import Progress, pause_s


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock, which tests set."""
    clock = [100.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    return clock


def test_lines_are_seldom_and_say_how_much_is_left(now: list[float]) -> None:
    lines: list[str] = []
    progress = Progress(
        lines.append,
        "importing",
        "rows",
        units=lambda piece: piece,
        size=lambda piece, result: result,
        total=3000,
        done=1000,
    )
    progress.begin(None)
    for _ in range(10):
        progress.add(100, 2_000_000)
        now[0] += 1
        progress.tick()
    assert lines[0] == "importing: 1,300 of 3,000 rows, 100 a second, 2.0 MB/s, about 17 s left"
    assert len(lines) == 3
    progress.add(1000, 0)
    progress.close()
    assert lines[3] == "importing: 3,000 of 3,000 rows, 200 a second, 2.0 MB/s"


def test_a_count_that_stands_still_is_seldom_shown(now: list[float]) -> None:
    lines, times = list[str](), list[float]()
    progress = Progress(lambda line: (lines.append(line), times.append(now[0])), "DCI", "factors")  # type: ignore[arg-type,func-returns-value]
    progress.begin(range(10))
    for second in range(1, 101):
        now[0] = 100.0 + second
        if second == 70:
            progress.add(0, None)
        progress.tick()
    assert times == [*(100.0 + 9 * number for number in range(1, 8)), 170.0, 179.0, 188.0, 197.0]
    assert lines[1] == "DCI: 0 of 10 factors, 18 s so far"
    assert lines[7] == "DCI: 1 of 10 factors, about 630 s left"


def test_pauses_grow_with_the_age_of_the_work() -> None:
    ages = (0.0, 900.0, 1000.0, 3000.0, 6000.0, 1e6)
    assert [pause_s(age) for age in ages] == [9.0, 9.0, 10.0, 30.0, 60.0, 60.0]
    lines, age = 0, 0.0
    while age < 86_400:
        lines, age = lines + 1, age + pause_s(age)
    assert lines < 1700, "a day's"


def test_pieces_are_made_when_their_turn_comes() -> None:
    done: list[int] = []

    def pieces() -> Iterator[int]:
        for number in range(5):
            assert len(done) == number
            yield number

    assert LocalPool().map(lambda state, piece: done.append(piece), pieces()) == [None] * 5
