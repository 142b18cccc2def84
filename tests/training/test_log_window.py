"""The window between two log lines: what it counts, when it begins anew, and how much unreadable data it bears."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from soda_dist.data.pairs import Pairs
from soda_dist.data.storage.folder import open_folder
from soda_dist.errors import UserError
from soda_dist.runs.metrics_log import METRICS, read_lines
from soda_dist.training.context import LocalContext
from soda_dist.training.engines.engine import StepResult
from soda_dist.training.log_window import LogWindow
from tests.tiny import pairs_at, tiny_config


class Clock:
    """Seconds that pass only when a test lets them."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("soda_dist.training.log_window.time", clock)
    return clock


def window_of(path: Path, **train: float) -> LogWindow:
    return LogWindow(LocalContext(), tiny_config(train=train), open_folder(str(path)), rows=80, first_step=0)


def step(window: LogWindow, clock: Clock, waits: float, works: float, spoiled: int = 0) -> None:
    """One update on a global batch of 8 pairs, of which the first `spoiled` cannot be read."""

    def slow(pairs: Pairs) -> Pairs:
        clock.now += waits
        return pairs

    reasons = ["cut short" if row < spoiled else "" for row in range(8)]
    pairs = replace(pairs_at(window.config, 0, 8), name=["image.png"] * 8, reason=reasons)
    list(window.timed(map(slow, [pairs]), 1))
    clock.now += works
    window.add(StepResult(torch.tensor(2.0), torch.tensor(1.0), torch.tensor(True)))


def test_each_line_has_the_waiting_of_its_own_window(tmp_path: Path, clock: Clock) -> None:
    window = window_of(tmp_path)
    for number, (waits, works) in enumerate([(3.0, 1.0), (1.0, 3.0), (0.0, 4.0)], 1):
        step(window, clock, waits, works)
        window.log(number, 1e-3)
    window.flush()
    lines = read_lines(window.run, METRICS)
    assert [line["wait_fraction"] for line in lines] == [0.75, 0.25, 0.0]
    assert [line["images_per_second"] for line in lines] == [2.0] * 3
    assert [line["loss"] for line in lines] == [2.0] * 3


def test_a_share_of_unreadable_rows_at_the_limit_is_borne_and_one_more_ends_the_run(
    tmp_path: Path, clock: Clock
) -> None:
    window = window_of(tmp_path, max_unreadable=0.25)
    step(window, clock, 0.0, 1.0, spoiled=2)
    window.log(1, 1e-3)
    step(window, clock, 0.0, 1.0, spoiled=3)
    with pytest.raises(UserError, match=r"train\.max_unreadable: got 5 of 16 rows .*; allowed: at most 25\.00%"):
        window.log(2, 1e-3)
