"""A command as a real process, with an own Ray, whose parts a test may signal."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

JOBS = Path(__file__).parents[1] / "jobs"
LIMIT_S = 300.0
LOOK_S = 0.05


class Job:
    """A running job and its output."""

    def __init__(self, process: subprocess.Popen, output: Path) -> None:
        self.process, self._output = process, output

    def text(self) -> str:
        return self._output.read_text()

    def until(self, condition: Callable[[], bool], seconds: float = LIMIT_S) -> None:
        """Wait for a condition, while the job runs."""
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None and time.monotonic() < end, self.text()
            time.sleep(LOOK_S)

    def step(self) -> int:
        """The last step shown."""
        return max((int(step) for step in re.findall(r"^step (\d+)/", self.text(), re.MULTILINE)), default=0)

    def parts(self, title: str) -> list[psutil.Process]:
        """Processes of the job's Ray whose title begins so."""
        return [each for each in psutil.Process(self.process.pid).children(recursive=True) if _title(each, title)]

    def part(self, title: str) -> psutil.Process:
        """The first of `parts`, once there is one."""
        self.until(lambda: bool(self.parts(title)))
        return self.parts(title)[0]


def _title(process: psutil.Process, title: str) -> bool:
    try:
        return " ".join(process.cmdline()).startswith(title)
    except psutil.Error:  # it ended meanwhile
        return False


@contextmanager
def job_process(
    name: str, arguments: list[str], output: Path, environment: Mapping[str, str] | None = None
) -> Iterator[Job]:
    """Start `jobs/NAME.py`; at the end, kill it and its Ray."""
    with output.open("a") as file:
        process = subprocess.Popen(
            [sys.executable, str(JOBS / f"{name}.py"), *arguments],
            stdout=file,
            stderr=file,
            env={**os.environ, "RAY_worker_niceness": "0", **(environment or {})},
            start_new_session=True,
        )
    try:
        yield Job(process, output)
    finally:
        rest = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.kill()
        process.wait()
        for each in rest:
            try:
                each.send_signal(signal.SIGKILL)
            except psutil.Error:
                continue
        psutil.wait_procs(rest, timeout=30)
