"""Signals to a command: its exit code, its last line, and a wish to stop that a second signal hastens."""

import os
import signal
import subprocess
import sys

import pytest

from soda_dist.interrupts import Interrupted, ending, wished

COMMAND = """
import os, signal, sys
from soda_dist import cli
sys.argv = ["job"]
def main(argv):
    try:
        os.kill(os.getpid(), signal.{name})
        signal.pause()
    finally:
        print("unwound", flush=True)
cli.run(main)
"""


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_command_unwinds_says_how_to_go_on_and_has_the_signals_exit_code(name: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", COMMAND.format(name=name)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code
    assert done.stdout == "unwound\n"
    assert done.stderr == f"interrupted by {name}: rerun the same command to resume from the last checkpoint\n"


def test_the_first_signal_is_a_wish_and_the_second_an_order() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with wished() as found:
        assert found.signal is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert found.signal is signal.SIGTERM
        with pytest.raises(Interrupted) as raised:
            os.kill(os.getpid(), signal.SIGINT)
    assert raised.value.exit_code == 130
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_no_failure_handler_takes_an_interruption() -> None:
    with ending(), pytest.raises(Interrupted):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Exception as error:  # pragma: no cover - what must not happen
            raise AssertionError from error
