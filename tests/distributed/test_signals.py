"""A real run, its own Ray, and what machines do to processes: a worker told to leave, a lost mailbox, a stop."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from soda_dist.config.load import dump_config
from soda_dist.data.storage.folder import open_folder
from soda_dist.runs.folder import attempts, complete_steps
from tests.evaluation.small_run import prepare
from tests.tiny import tiny_config

pytestmark = [pytest.mark.ray, pytest.mark.slow]

JOB = Path(__file__).parents[2] / "jobs/pretrain.py"
TRAIN = {"steps": 10**6, "global_batch": 8, "log_every_steps": 5, "checkpoint_every_steps": 10**6}
LIMIT_S = 240.0


class Job:
    """A running command; its run's only checkpoints are those that something asked for."""

    def __init__(self, process: subprocess.Popen, output: Path) -> None:
        self.process, self._output = process, output

    def text(self) -> str:
        return self._output.read_text()

    def until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + LIMIT_S
        while not condition():
            assert self.process.poll() is None and time.monotonic() < end, self.text()
            time.sleep(0.1)

    def step(self) -> int:
        """The last step shown."""
        return max((int(step) for step in re.findall(r"^step (\d+)/", self.text(), re.MULTILINE)), default=0)

    def child(self, title: str) -> psutil.Process:
        for process in psutil.Process(self.process.pid).children(recursive=True):
            if " ".join(process.cmdline()).startswith(title):
                return process
        raise AssertionError(f"no process {title}")


@contextmanager
def running(path: Path) -> Iterator[Job]:
    prepare(str(path / "data"), {"train": [[16] * 6]}, {})
    scale = {"workers": 1, "data_memory_mb": 64, "max_failures": 0}
    (path / "run.yaml").write_text(dump_config(tiny_config(train=TRAIN, scale=scale)))
    command = [sys.executable, str(JOB), "--preset", str(path / "run.yaml")]
    with (path / "output").open("w") as output:
        process = subprocess.Popen(
            [*command, "--data", str(path / "data"), "--run", str(path / "run")], stdout=output, stderr=output
        )
        try:
            yield Job(process, path / "output")
        finally:
            process.kill()
            process.wait()


def test_a_run_leaves_moves_and_stops_with_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_worker_niceness", "0")
    run = open_folder(str(tmp_path / "run"))
    with running(tmp_path) as job:
        job.until(lambda: job.step() > 0)
        job.child("ray::RayTrainWorker").send_signal(signal.SIGTERM)
        job.until(lambda: "resuming from step" in job.text())
        (left,) = complete_steps(run)
        assert f"resuming from step {left} of" in job.text()
        job.child("ray::_Actor").kill()
        job.until(lambda: job.step() > left)
        job.process.send_signal(signal.SIGTERM)
        assert job.process.wait(LIMIT_S) == 143
        lines = job.text().splitlines()
    saved = complete_steps(run)[-1]
    assert saved > left
    assert lines[-1] == (
        f"stopped by SIGTERM at step {saved}, which is saved; rerun the same command to resume from the last checkpoint"
    )
    assert "moving: the run goes on from its checkpoint as soon as there is room" in lines
    assert attempts(run)[-1]["ended"]["reason"] == f"stopped by SIGTERM at step {saved}, which is saved"
