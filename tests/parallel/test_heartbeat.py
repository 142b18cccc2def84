"""Lines of a command that is silent for long."""

import threading
from itertools import pairwise
from types import SimpleNamespace

import pytest

from soda_dist.parallel import heartbeat as module
from soda_dist.parallel.heartbeat import Heartbeat, ticking


def test_silence_ends_after_ten_seconds_once_a_line_was_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, said = [50.0], list[tuple[float, str]]()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    beat = Heartbeat()

    def pass_time(until: float) -> None:
        while clock[0] < until:
            clock[0] += 0.5
            beat.tick(lambda line: said.append((clock[0], line)))

    pass_time(100.0)
    assert said == [], "a command that has said nothing stays silent"
    beat.heard()
    pass_time(125.0)
    beat.heard()
    pass_time(134.5)
    assert [at for at, _ in said] == [110.0, 120.0]
    assert said[1][1] == "still running, 20 s since the last line"
    pass_time(4125.0)
    late = [at for at, _ in said if at > 3800.0]
    assert all(38.0 < after - before < 43.0 for before, after in pairwise(late)), "1 % of the age apart"


def test_ticks_end_with_the_block() -> None:
    ticked = threading.Event()
    before = threading.active_count()
    with ticking(ticked.set):
        assert ticked.wait(5.0)
    assert threading.active_count() == before
