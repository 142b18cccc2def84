"""What becomes of a run, decided on reports and a clock of the test's own."""

import pytest

from soda_dist.config.sections import Scale
from soda_dist.distributed.supervisor import LINE_S, SILENT_S, Controller, Failed, Placed, Restarting, Supervisor
from soda_dist.distributed.worker_control import Beat, Stacks
from soda_dist.errors import DivergedError, MachineError, UserError
from soda_dist.training.context import Ask, LeavingError
from soda_dist.training.failures import Remedy

NOT_FINITE = DivergedError("loss", "nan", "finite", "lower optim.lr")


class Story:
    """A supervisor, what it said, and the test's clock."""

    def __init__(self, missing: str | None = "2 CPU (0 of 2 free)", **scale: float | None) -> None:
        self.said: list[str] = []
        self.missing = missing
        self.run = Supervisor(Scale(**scale), self.said.append, lambda controller: self.missing, 0.0)

    def tick(self, now: float, *beats: Beat, draining: tuple[str, ...] = ()) -> "Story":
        self.run.tick(now, {beat.rank: (now, beat) for beat in beats}, draining)
        return self

    def took(self, *facts: object) -> "Story":
        for fact in facts:
            self.run.took(fact)  # type: ignore[arg-type]
        return self


def failed(remedy: Remedy, error: Exception, step: int | None = 4, rank: int = 0) -> Failed:
    return Failed(rank, step, remedy, error, "Traceback\n  in train")


LOST = Restarting("the actor died", preempted=False)
BROKEN = failed(Remedy.RETRY, MachineError("RuntimeError: CUDA error"))


def test_a_wait_for_machines_is_told_by_the_minute_and_ends_only_at_its_limit() -> None:
    story = Story(max_wait_s=None)
    for second in range(3601):
        story.tick(float(second))
    assert story.run.end is None
    assert len(story.said) == 60
    assert story.said[0] == "waiting for machines, 10 s so far: 2 CPU (0 of 2 free)"
    assert story.said[-1].startswith("waiting for machines, 59 min so far")
    limited = Story(max_wait_s=100.0).tick(100.0)
    assert limited.run.end is None
    assert str(limited.tick(100.5).run.end).startswith("scale.max_wait_s: got no machines within 100 s: 2 CPU (0 of 2")


def test_workers_that_have_machines_are_not_waited_for() -> None:
    starting = Story(missing=None, max_wait_s=5.0).tick(30.0).tick(300.0)
    assert starting.said == [] and starting.run.end is None and not starting.run.waiting
    room = Story(missing="", max_wait_s=50.0).tick(40.0).tick(80.0)
    assert room.said == [] and room.run.end is None and room.run.waiting
    placed = Story(max_wait_s=5.0).took(Placed()).tick(300.0)
    assert placed.said == [] and placed.run.end is None
    again = placed.took(LOST).tick(302.0)
    assert again.run.waiting and again.run.end is None
    assert isinstance(again.tick(306.0).run.end, UserError)


@pytest.mark.parametrize("error", [NOT_FINITE, UserError("a", "b", "c", "d")])
def test_what_cannot_be_mended_ends_with_its_own_error(error: Exception) -> None:
    story = Story(max_failures=-1).took(failed(Remedy.NOTHING, error))
    assert story.run.end is error and story.run.failures == 0


def test_a_bug_ends_with_one_diagnosis_and_its_trace() -> None:
    story = Story(max_failures=-1).took(failed(Remedy.NOTHING, MachineError("KeyError: 'x'"), step=None, rank=3))
    assert str(story.run.end) == "training process 3 failed before its first step: KeyError: 'x'"
    assert story.said == ["  Traceback", "    in train"]


def test_the_same_error_after_the_same_step_ends_at_the_second_time() -> None:
    story = Story(max_failures=-1).took(BROKEN, LOST, BROKEN._replace(step=5), LOST)
    assert story.run.end is None and story.run.failures == 2
    story.took(BROKEN._replace(error=MachineError("OSError: disk")), LOST)
    assert story.run.end is None
    story.took(BROKEN)
    said = "training process 0 failed after step 4, as at an earlier start: RuntimeError: CUDA error"
    assert str(story.run.end) == said


def test_lost_workers_count_once_a_start_and_end_the_run_beyond_the_limit() -> None:
    peers = [failed(Remedy.PEER, MachineError("RuntimeError: Connection closed by peer"), rank=rank) for rank in (0, 1)]
    story = Story(max_failures=2)
    for _ in range(2):
        story.took(*peers, LOST)
    assert story.run.end is None and story.run.failures == 2
    assert story.said == ["a training process was lost (the actor died); starting again from the last checkpoint"] * 2
    story.took(*peers, LOST)
    assert str(story.run.end).startswith("3 failures, and scale.max_failures=2; the last: the actor died; rerun")


def test_a_machine_that_is_known_to_go_is_left_and_counts_as_no_failure() -> None:
    story, here = Story(max_failures=0).took(Placed()), Beat(0, "node-a", 7)
    story.tick(1.0, here, draining=("node-b",))
    assert story.run.ask is Ask.NOTHING
    story.tick(2.0, here, draining=("node-a",)).tick(3.0, here, draining=("node-a",))
    assert story.run.ask is Ask.LEAVE
    assert story.said == ["a machine is about to be taken away: saving a checkpoint"]
    story.took(failed(Remedy.LEFT, LeavingError("saved step 8")), LOST)
    assert story.run.ask is Ask.NOTHING and story.run.failures == 0 and story.run.end is None
    story.took(Restarting("preempted", preempted=True))
    assert story.run.failures == 0


def test_silent_workers_are_not_taken_for_running_ones() -> None:
    story, old = Story().took(Placed()), Beat(0, "node-a", 7)
    story.run.tick(SILENT_S + 1, {0: (0.0, old)}, ("node-a",))
    assert story.run.ask is Ask.NOTHING


def test_there_is_nothing_to_save_before_a_step_of_this_start() -> None:
    story, late = Story().took(Placed()), Beat(0, "n", 12)
    assert story.tick(1.0, Beat(0, "n", None)).run.idle
    assert not story.tick(2.0, late).run.idle
    assert not story.tick(30.0).run.idle, "a mailbox that was lost, or a long step, silences them for a while"
    story.took(LOST).run.tick(31.0, {0: (29.0, late)}, ())
    assert story.run.idle, "the sign of life is of a process before the restart"
    assert not story.tick(40.0, late).run.idle


def test_a_wish_to_stop_is_not_forgotten_at_a_restart() -> None:
    story = Story().took(Placed())
    story.run.ask = Ask.STOP
    assert story.took(LOST).run.ask is Ask.STOP


def test_stacks_and_the_controller_are_kept_and_shown() -> None:
    story = Story(hang_timeout_s=30.0).took(Controller("actor"), Stacks(1, "Thread 1\n  File x"))
    assert story.run.controller == "actor"
    assert story.said == ["no step for 30 s; the stacks of process 1:", "  Thread 1", "    File x"]
    assert LINE_S > SILENT_S
