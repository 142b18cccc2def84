"""A training process beside its training: what is asked is agreed on, and an end when nothing moves."""

import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.multiprocessing import ProcessExitedException

from soda_dist.distributed import worker_control as module
from soda_dist.distributed.runtime.mailbox import Beat
from soda_dist.distributed.worker_control import Control, Stacks, leave_on_sigterm
from soda_dist.training.context import Ask
from tests.distributed.spawned import run_processes


def _agreeing(rank: int, world: int) -> list[int]:
    """Rank 1 hears of a stop before step 4, of which rank 0 hears nothing."""
    order = Ask.NOTHING
    control = Control("node", lambda beat: order, lambda fact: None, rank=rank, world=world, hang_timeout_s=60)
    heard, module.BEAT_S = threading.Event(), 0.01
    control._send = lambda beat: (heard.set(), order)[1]  # type: ignore[func-returns-value]
    found = []
    with control.beating():
        for step in range(1, 8):
            if step == 4 and rank == 1:
                order = Ask.STOP
                for _ in range(2):  # the second beat begins after the order is given
                    heard.clear()
                    assert heard.wait(30)
                while control._ask is not Ask.STOP:
                    heard.wait(0.01)
            found.append(int(control.asked(step)))
    return found


def test_all_processes_do_what_one_heard_after_the_same_step(tmp_path: Path) -> None:
    one, two = run_processes(_agreeing, 2, tmp_path)
    assert one == two == [0, 0, 0, 0, *[int(Ask.STOP)] * 3]


def test_a_process_alone_needs_no_agreement_and_sigterm_asks_it_to_leave() -> None:
    control = Control("node", lambda beat: None, lambda fact: None, rank=0, world=1, hang_timeout_s=60)
    before = signal.getsignal(signal.SIGTERM)
    try:
        leave_on_sigterm()
        assert control.asked(1) is Ask.NOTHING
        os.kill(os.getpid(), signal.SIGTERM)
        assert control.asked(2) is Ask.LEAVE
        leave_on_sigterm()  # the next start in the same process
        assert control.asked(3) is Ask.NOTHING
    finally:
        signal.signal(signal.SIGTERM, before)


def _hanging(rank: int, world: int, report: str) -> None:
    """Waits for a peer that never comes, as beside a frozen one."""
    module.BEAT_S, module.OTHERS_S = 0.05, 0.1
    beats: list[Beat] = []

    def told(fact: Stacks) -> None:
        Path(report).write_text(f"{fact.rank} {beats[-1].step}\n{fact.text}")

    control = Control("node", beats.append, told, rank=rank, world=world, hang_timeout_s=0.5)  # type: ignore[arg-type]
    with control.beating():
        control.asked(7)
        waits_for_its_peer()


def waits_for_its_peer() -> None:
    threading.Event().wait(60)


def test_a_process_without_a_step_shows_its_stacks_and_ends(tmp_path: Path) -> None:
    report = tmp_path / "report"
    with pytest.raises(ProcessExitedException) as ended:
        run_processes(_hanging, 1, tmp_path, str(report))
    assert ended.value.signal_name == "SIGKILL"  # type: ignore[attr-defined]
    first, *stack = report.read_text().splitlines()
    assert first == "0 7"
    assert any("in waits_for_its_peer" in line for line in stack)


def test_only_a_process_that_has_begun_and_no_longer_moves_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    now, ended, told = [0.0], list[int](), list[Stacks]()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: None))
    monkeypatch.setattr(module, "os", SimpleNamespace(kill=lambda pid, signum: ended.append(signum), getpid=os.getpid))
    control = Control("node", lambda beat: None, told.append, rank=3, world=1, hang_timeout_s=10)
    for moment, step in ((50.0, None), (50.0, 1), (58.0, 2), (67.0, None)):  # the first step may take any time
        now[0] = moment
        if step is not None:
            control.asked(step)
        control._beat()
        assert ended == []
    now[0] = 69.0
    control._beat()
    assert ended == [signal.SIGKILL] and [each.rank for each in told] == [3]


def test_an_order_is_kept_while_the_mailbox_does_not_answer() -> None:
    answers = iter([Ask.STOP, None, None])
    control = Control("node", lambda beat: next(answers), lambda fact: None, rank=0, world=1, hang_timeout_s=60)
    for step in (1, 2, 3):
        control._beat()
        assert control.asked(step) is Ask.STOP
