"""Runs that lose processes at random moments end as an undisturbed one does: parameters, moments, EMA, metrics.

A third of them read and write through a faulty object store. Where the command itself is killed, the same command is
given again; nothing else is touched. `make test-chaos`.
"""

import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import psutil
import pytest

from soda_dist.config.load import dump_config
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.runs.folder import CHECKPOINTS, complete_steps
from soda_dist.runs.metrics_log import METRICS, read_lines
from tests.evaluation.small_run import prepare
from tests.faulty_proxy import Faults, faulty_proxy
from tests.job_process import LIMIT_S, Job, job_process
from tests.tiny import tiny_config

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.timeout(900)]

STEPS, EVERY = 120, 6
TRAIN = {
    "steps": STEPS, "global_batch": 8, "log_every_steps": 3, "checkpoint_every_steps": EVERY, "keep_checkpoints": 40,
    "trackers": (),
}  # fmt: skip
SCALE = {"workers": 2, "zero_stage": 2, "data_memory_mb": 64, "max_failures": -1, "hang_timeout_s": 8.0}
WORKER, CONTROLLER, MAILBOX, DATA = "ray::RayTrainWorker", "ray::TrainController", "ray::_Actor", "ray::"
VICTIMS = ("worker", "controller", "mailbox", "command", "data task", "frozen worker")
MOMENTS = ("step", "checkpoint", "twice")
TITLES = {"worker": WORKER, "controller": CONTROLLER, "mailbox": MAILBOX, "frozen worker": WORKER}
OF_THE_CLOCK = {"images_per_second", "wait_fraction", "store_retries", "time", "checkpoint_pause"}
FAULTS = {"refused": 0.02, "broken": 0.02, "throttled": 0.02, "cut": 0.02}


class Plan(NamedTuple):
    """What a seed does to a run."""

    victim: str
    moment: str
    steps: tuple[int, ...]
    """Steps whose checkpoint is waited for before each kill."""
    faulty: bool

    @classmethod
    def of(cls, seed: int) -> "Plan":
        draw = random.Random(seed)
        moment = MOMENTS[seed // len(VICTIMS) % len(MOMENTS)]
        steps = sorted(draw.sample(range(EVERY, STEPS - 2 * EVERY, EVERY), 2 if moment == "twice" else 1))
        return cls(VICTIMS[seed % len(VICTIMS)], moment, tuple(steps), seed % 3 == 0)


class Arguments(NamedTuple):
    data: str
    config: str

    def to(self, run: str) -> list[str]:
        return ["--preset", self.config, "--data", self.data, "--run", run]


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> Arguments:
    place = tmp_path_factory.mktemp("chaos")
    prepare(str(place / "data"), {"train": [[16] * 6]}, {})
    (place / "run.yaml").write_text(dump_config(tiny_config(train=TRAIN, scale=SCALE, encoder={"norm": "batch"})))
    return Arguments(str(place / "data"), str(place / "run.yaml"))


def finish(arguments: Arguments, run: str, output: Path, environment: dict[str, str] | None = None) -> None:
    with job_process("pretrain", arguments.to(run), output, environment) as job:
        assert job.process.wait(LIMIT_S) == 0, job.text()


@pytest.fixture(scope="module")
def undisturbed(arguments: Arguments, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    place = tmp_path_factory.mktemp("undisturbed")
    finish(arguments, str(place / "run"), place / "output")
    return outcome(open_folder(str(place / "run")))


def outcome(run: Folder) -> dict[str, Any]:
    """The digests of the last checkpoint's files, and the metrics without those of the clock."""
    assert complete_steps(run)[-1] == STEPS
    manifest = run.child(f"{CHECKPOINTS}/{STEPS:09d}").read_json("manifest.json")
    files = {entry["name"]: entry["sha256"] for entry in manifest["files"] if entry["name"] != "config.json"}
    lines = [{k: v for k, v in line.items() if k not in OF_THE_CLOCK} for line in read_lines(run, METRICS)]
    return {"files": files, "metrics": lines, "updates": manifest["updates"]}


def strike(job: Job, plan: Plan, run: Folder, step: int) -> None:
    """Wait for the moment, and kill or freeze the victim."""
    job.until(lambda: step in complete_steps(run))
    if plan.moment == "checkpoint":
        job.until(lambda: _being_written(run) or complete_steps(run)[-1] > step + EVERY)
    if plan.victim == "command":
        job.process.kill()
        job.process.wait()
    elif plan.victim == "data task":
        job.until(lambda: bool(_data_tasks(job)), 60)
        _signal(_data_tasks(job)[0], signal.SIGKILL)
    else:
        frozen = plan.victim == "frozen worker"
        _signal(job.part(TITLES[plan.victim]), signal.SIGSTOP if frozen else signal.SIGKILL)


def _being_written(run: Folder) -> bool:
    begun = {entry.name.split("/")[1] for entry in run.list(CHECKPOINTS) if entry.name.count("/") > 1}
    return len(begun) > len(complete_steps(run))


def _data_tasks(job: Job) -> list[psutil.Process]:
    return [each for each in job.parts(DATA) if "Read" in " ".join(each.cmdline()) and "Train" not in each.cmdline()[0]]


def _signal(process: psutil.Process, signum: signal.Signals) -> None:
    process.send_signal(signum)


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Where the run is kept, and the environment that reaches it."""
    seed: int = request.param
    if not Plan.of(seed).faulty:
        yield str(tmp_path / "run"), {}
        return
    endpoint, bucket = request.getfixturevalue("s3_server"), request.getfixturevalue("new_bucket")()
    with faulty_proxy(endpoint, Faults(**FAULTS, seed=seed)) as proxy:
        yield f"{bucket}/{uuid4().hex}", {"AWS_ENDPOINT_URL": proxy}


@pytest.mark.parametrize(("seed", "store"), [(seed, seed) for seed in range(30)], indirect=["store"])
def test_a_disturbed_run_ends_as_an_undisturbed_one(
    seed: int, store: tuple[str, dict[str, str]], arguments: Arguments, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    plan, (uri, environment), output = Plan.of(seed), store, tmp_path / "output"
    run, code, left = open_folder(uri), None, list(plan.steps)
    while code is None:
        with job_process("pretrain", arguments.to(uri), output, environment) as job:
            while left:
                strike(job, plan, run, left.pop(0))
                if plan.victim == "command":
                    break
            else:
                code = job.process.wait(LIMIT_S)
    text = output.read_text()
    assert code == 0, text
    assert plan.victim in ("mailbox", "data task") or "resuming from step" in text, text
    assert outcome(run) == undisturbed
