"""A real run, its own Ray, and what machines do to processes: a worker told to leave, a lost mailbox, a stop."""

import signal
from pathlib import Path

import pytest

from soda_dist.config.load import dump_config
from soda_dist.data.storage.folder import open_folder
from soda_dist.runs.folder import attempts, complete_steps
from tests.evaluation.small_run import prepare
from tests.job_process import LIMIT_S, job_process
from tests.tiny import tiny_config

pytestmark = [pytest.mark.ray, pytest.mark.slow]

TRAIN = {"steps": 10**6, "global_batch": 8, "log_every_steps": 5, "checkpoint_every_steps": 10**6}


def test_a_run_leaves_moves_and_stops_with_what_it_has(tmp_path: Path) -> None:
    """The run's only checkpoints are those that something asked for."""
    data, place, config = (str(tmp_path / name) for name in ("data", "run", "run.yaml"))
    prepare(data, {"train": [[16] * 6]}, {})
    scale = {"workers": 1, "data_memory_mb": 64, "max_failures": 0}
    Path(config).write_text(dump_config(tiny_config(train=TRAIN, scale=scale)))
    run = open_folder(place)
    arguments = ["--preset", config, "--data", data, "--run", place]
    with job_process("pretrain", arguments, tmp_path / "output") as job:
        job.until(lambda: job.step() > 0)
        job.part("ray::RayTrainWorker").send_signal(signal.SIGTERM)
        job.until(lambda: "resuming from step" in job.text())
        (left,) = complete_steps(run)
        assert f"resuming from step {left} of" in job.text()
        job.part("ray::_Actor").kill()
        job.until(lambda: job.step() > left)
        job.process.send_signal(signal.SIGTERM)
        assert job.process.wait(LIMIT_S) == 143
        lines = job.text().splitlines()
    saved = complete_steps(run)[-1]
    assert saved > left
    assert lines[-1] == (
        f"stopped by SIGTERM at step {saved}, which is saved; rerun the same command to resume from the last checkpoint"
    )
    assert "moving: the run resumes from its checkpoint as soon as there is room" in lines
    assert attempts(run)[-1]["ended"]["reason"] == f"stopped by SIGTERM at step {saved}, which is saved"
