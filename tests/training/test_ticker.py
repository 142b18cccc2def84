"""Lines of a run by time: counters between log lines, the newest log line, and no flood."""

from types import SimpleNamespace

import pytest

from soda_dist.training import ticker as module
from soda_dist.training.ticker import Ticker, duration


class Run:
    """A run of steps that take a given time, in seconds that pass only here."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, total: int) -> None:
        self.now, self.step, self.said = 0.0, 0, list[tuple[float, str]]()
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.ticker = Ticker(lambda line: self.said.append((self.now, line)), step=0, total=total, batch=8)

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(2 * seconds)):
            self.now += 0.5
            self.ticker.tick()

    def steps(self, count: int, seconds: float, log_every: int) -> None:
        for _ in range(count):
            self.ticker.doing("in this step")
            self.pass_time(seconds)
            self.step += 1
            self.ticker.stepped()
            if self.step % log_every == 0:
                self.ticker.log(f"loss of step {self.step}")


def test_counters_are_shown_between_log_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, 40)
    run.steps(20, 2.0, log_every=50)
    assert [at for at, _ in run.said] == [9.0, 18.0, 27.0, 36.0]
    # At 18 s the ninth step is not counted yet: eight are, four of them since the last line.
    assert run.said[1] == (18.0, "step 8/40  3.56 pairs/s  left 72 s")


def test_a_step_that_takes_long_says_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, 40)
    run.ticker.doing("waiting for rows")
    run.pass_time(25.0)
    assert run.said == [(9.0, "step 0/40  waiting for rows: 9 s"), (18.0, "step 0/40  waiting for rows: 18 s")]


def test_log_lines_are_not_a_flood_and_the_newest_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, 10_000)
    run.steps(70, 0.5, log_every=3)
    assert run.said == [
        (1.5, "loss of step 3"),
        (10.5, "loss of step 18"),
        (19.5, "loss of step 36"),
        (28.5, "loss of step 54"),
    ]
    run.ticker.log("the last step", now=True)
    assert run.said[-1] == (35.0, "the last step")


def test_a_line_out_of_step_with_the_pauses_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log lines 10.5 s apart: each pause shows the one that came since, not counters alone."""
    run = Run(monkeypatch, 100)
    run.steps(9, 10.5, log_every=1)
    assert [line for _, line in run.said if "loss" in line] == [f"loss of step {n}" for n in range(1, 9)]
    assert len(run.said) == 11, "three pauses had nothing else to show than the step"


def test_durations_in_the_unit_that_reads_best() -> None:
    assert [duration(seconds) for seconds in (7, 119, 120, 7199, 7200, 360_000)] == [
        "7 s", "119 s", "2 min", "120 min", "2.0 h", "100.0 h",
    ]  # fmt: skip
