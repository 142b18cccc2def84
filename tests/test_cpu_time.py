"""CPU seconds of children count while they live, after they end, and when nobody waits for them."""

import subprocess
import sys
import threading

import psutil
import pytest

from tests import cpu_time
from tests.cpu_time import ProcessTree

BURN = "import time\nwhile time.process_time() < 0.4: pass\nprint(flush=True)\ninput()"
PARENT = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', sys.argv[1]]); time.sleep(600)"


def test_a_child_counts_while_it_lives_and_once_after_it() -> None:
    tree = ProcessTree()
    before = tree.seconds()
    with subprocess.Popen([sys.executable, "-c", BURN], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        alive = tree.seconds()
        child.communicate(b"\n")
    assert alive - before >= 0.38  # of 0.4 s; the kernel counts in hundredths
    assert 0 <= tree.seconds() - alive < 0.4


def test_a_grandchild_whose_parent_is_killed_still_counts() -> None:
    tree = ProcessTree()
    before = tree.seconds()
    command = [sys.executable, "-c", PARENT, BURN]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        alive = tree.seconds()
        parent.kill()
        parent.wait()
        orphaned = tree.seconds()
        parent.communicate(b"\n")
    assert alive - before >= 0.38  # of 0.4 s; the kernel counts in hundredths
    assert orphaned >= alive - 1e-6 and tree.seconds() >= orphaned - 1e-6  # sums in another order


def test_a_grandchild_that_nobody_waits_for_counts_though_it_ended_between_two_bookings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a worker of Ray's, whose parent leaves its end to the kernel."""
    monkeypatch.setattr(cpu_time, "LOOK_EVERY_S", 0.05)
    tree, looks, look = ProcessTree(), threading.Semaphore(0), ProcessTree._add_up
    before = tree.seconds()

    def counted(self: ProcessTree) -> float:
        total = look(self)
        looks.release()
        return total

    monkeypatch.setattr(ProcessTree, "_add_up", counted)
    tree.watch()
    ignore = "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN); "
    command = [sys.executable, "-c", ignore + PARENT, BURN]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None and parent.stdin is not None
        parent.stdout.readline()
        while looks.acquire(blocking=False):
            pass
        assert looks.acquire(timeout=30) and looks.acquire(timeout=30), "a whole look since it burnt"
        [grandchild] = psutil.Process(parent.pid).children()
        parent.stdin.write(b"\n")
        parent.stdin.flush()
        grandchild.wait(timeout=30)
        parent.kill()
    assert tree.seconds() - before >= 0.38
