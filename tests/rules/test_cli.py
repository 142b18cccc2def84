"""The jobs as a user meets them: help without heavy imports, wrong input in one line, exit codes."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
JOBS = sorted(path.name for path in (ROOT / "jobs").glob("*.py"))
STORAGE = ("soda_dist.cli", "soda_dist.data.storage.folder")
HEAVY = ("ray", "torch", "deepspeed", "pyarrow", "timm", "cv2")
PRINT_CONFIG = ("pretrain.py", "--preset", "cifar10", "--print-config", "train.steps=7000")
WRONG = {
    ("--preset", "nope"): "--preset: got nope; allowed: afhq, celebahq",
    ("--preset", "demo", "train.stps=3"): "did you mean steps?",
    ("--preset", "demo", "train.steps=many"): "train.steps: got 'many'; allowed: integer",
    ("--preset", "demo", "optim.lr=-1"): "optim.lr: got -1; allowed: greater than 0",
    ("--preset", "demo", "scale.workers=7"): "scale.workers: got 7 with train.global_batch=32",
    ("--preset", "demo", "steps"): "override: got steps; allowed: section.field=value",
    ("--preset", "demo", "--data", "ftp://x/y"): "ftp",
    ("--preset", "demo", "--data", "s3://"): "s3://BUCKET/PATH",
}
"""Arguments of pretrain.py, and what its one line says of them."""


class Done(NamedTuple):
    """How a job ended."""

    returncode: int
    stdout: str
    stderr: str


def job(name: str, *arguments: str) -> Done:
    """Run a job as a user does, in a process of its own."""
    command = [sys.executable, f"jobs/{name}", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    return Done(done.returncode, done.stdout, done.stderr)


def forked(
    commands: Sequence[Sequence[str]], blocked: Sequence[str] = (), shared: Sequence[str] = ("soda_dist.cli",)
) -> list[Done]:
    """Run jobs in forks of one process, in which an import of a blocked module fails; `shared` is imported once."""
    arguments = [[f"jobs/{name}", *rest] for name, *rest in commands]
    asked = {"blocked": blocked, "shared": shared, "commands": arguments}
    command = [sys.executable, "-m", "tests.rules.forked_jobs"]
    done = subprocess.run(
        command, cwd=ROOT, input=json.dumps(asked), capture_output=True, text=True, timeout=120, check=True
    )
    return [Done(*answer) for answer in json.loads(done.stdout)]


@pytest.fixture(scope="module")
def light() -> dict[tuple[str, ...], Done]:
    """Each job with `--help` and without arguments, without heavy imports."""
    commands = [*((name, "--help") for name in JOBS), *((name,) for name in JOBS), PRINT_CONFIG]
    return dict(zip(commands, forked(commands, blocked=HEAVY), strict=True))


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], Done]:
    """pretrain.py with each of WRONG, with URIs where a case gives none."""
    place = tmp_path_factory.mktemp("wrong")
    data, run = ("--data", str(place)), ("--run", str(place / "run"))
    commands = [("pretrain.py", *given, *(() if "--data" in given else data), *run) for given in WRONG]
    return dict(zip(WRONG, forked(commands, shared=STORAGE), strict=True))


def test_the_jobs_are_those_of_the_readme():
    assert JOBS == [
        "ablate.py", "benchmark.py", "compare.py", "embed.py", "evaluate.py", "export.py", "plan.py", "prepare_data.py",
        "pretrain.py", "pretrain_imagenet.py", "report.py", "tune.py",
    ]  # fmt: skip


@pytest.mark.parametrize("name", JOBS)
def test_help_needs_neither_ray_nor_torch(name, light):
    done = light[name, "--help"]
    assert done.returncode == 0, done.stderr
    assert f"python jobs/{name}" in done.stdout
    assert "SUPPRESS" not in done.stdout and "None)" not in done.stdout and "[])" not in done.stdout


def test_help_shows_defaults(light):
    for name, flag, default in (
        ("prepare_data.py", "--images N|all", "16"),
        ("evaluate.py", "--ema {true,false}", "true"),
        ("evaluate.py", "--step N|latest|all", "latest"),
        ("compare.py", "--format F", "markdown"),
        ("pretrain_imagenet.py", "--preset NAME|FILE", "imagenet"),
    ):
        told = " ".join(light[name, "--help"].stdout.split())
        assert f"(default: {default})" in told[told.index(f"{flag} ") :].split(" --")[0], (name, flag)


@pytest.mark.parametrize("name", JOBS)
def test_missing_arguments_are_one_line_and_exit_2(name, light):
    done = light[(name,)]
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_print_config_needs_no_uris_and_shows_overrides(light):
    done = light[PRINT_CONFIG]
    assert done.returncode == 0, done.stderr
    assert "steps: 7000" in done.stdout


def test_a_job_in_a_process_of_its_own_ends_as_in_a_fork(light):
    assert job("plan.py", "--help") == light["plan.py", "--help"]
    assert job("plan.py") == light[("plan.py",)]


def test_a_blocked_import_fails():
    (done,) = forked([("plan.py", "--preset", "demo")], blocked=HEAVY)
    assert done.returncode == 1 and "ModuleNotFoundError: import of torch halted" in done.stderr


@pytest.mark.parametrize("arguments", WRONG, ids=" ".join)
def test_wrong_input_is_one_line_and_exit_2(arguments, wrong):
    done = wrong[arguments]
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert WRONG[arguments] in done.stderr


def test_a_folder_without_a_manifest_is_named(tmp_path):
    done = job("pretrain.py", "--preset", "demo", "--data", str(tmp_path), "--run", str(tmp_path / "run"))
    assert done.returncode == 2
    assert "manifest.json" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists(), "nothing is written before the input is right"


def test_a_job_whose_output_nobody_reads_ends_without_a_traceback() -> None:
    """The reader goes after one line, as `| head -1` does; a page in the pipe's buffer would hide that."""
    command = [sys.executable, "-c", WRITER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None and job.stderr is not None
        assert job.stdout.readline() == "line 0\n"
        job.stdout.close()
        error = job.stderr.read()
        assert job.wait() == 141
    assert error == "cleaned up\n"


WRITER = """
import sys
from soda_dist.cli import run, say

def main(argv):
    try:
        for number in range(10**6):
            say(f"line {number}")
    finally:
        print("cleaned up", file=sys.stderr)
    return ""

run(main)
"""
