"""The jobs as a user meets them: help without heavy imports, wrong input in one line, exit codes."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
JOBS = sorted(path.name for path in (ROOT / "jobs").glob("*.py"))
LIGHT = (
    "import sys, runpy; sys.modules.update(dict.fromkeys(('ray', 'torch', 'deepspeed', 'pyarrow', 'timm', 'cv2')));"
    "sys.path.insert(0, 'jobs'); sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)


def job(name: str, *arguments: str, light: bool = False) -> subprocess.CompletedProcess:
    command = [sys.executable, *(["-c", LIGHT] if light else []), f"jobs/{name}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_the_jobs_are_those_of_the_readme():
    assert JOBS == [
        "ablate.py", "benchmark.py", "compare.py", "evaluate.py", "plan.py", "prepare_data.py", "pretrain.py",
        "pretrain_imagenet.py", "tune.py",
    ]  # fmt: skip


@pytest.mark.parametrize("name", JOBS)
def test_help_needs_neither_ray_nor_torch(name):
    done = job(name, "--help", light=True)
    assert done.returncode == 0, done.stderr
    assert f"python jobs/{name}" in done.stdout


@pytest.mark.parametrize("name", JOBS)
def test_missing_arguments_are_one_line_and_exit_2(name):
    done = job(name, light=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_print_config_needs_no_uris_and_shows_overrides():
    done = job("pretrain.py", "--preset", "cifar10", "--print-config", "train.steps=7000", light=True)
    assert done.returncode == 0, done.stderr
    assert "steps: 7000," in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--preset", "nope"], "--preset: got nope; allowed: afhq, celebahq"),
        (["--preset", "demo", "train.stps=3"], "did you mean steps?"),
        (["--preset", "demo", "train.steps=many"], "train.steps: got 'many'; allowed: integer"),
        (["--preset", "demo", "optim.lr=-1"], "optim.lr: got -1; allowed: greater than 0"),
        (["--preset", "demo", "scale.workers=7"], "scale.workers: got 7 with train.global_batch=32"),
        (["--preset", "demo", "steps"], "override: got steps; allowed: section.field=value"),
        (["--preset", "demo", "--data", "ftp://x/y"], "ftp"),
        (["--preset", "demo", "--data", "s3://"], "s3://BUCKET/PATH"),
    ],
)
def test_wrong_input_is_one_line_and_exit_2(tmp_path, arguments, says):
    given = [*arguments, *([] if "--data" in arguments else ["--data", str(tmp_path)]), "--run", str(tmp_path / "run")]
    done = job("pretrain.py", *given)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert says in done.stderr


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
