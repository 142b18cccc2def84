"""The whole path as its user walks it: shards in S3 over HTTP, jobs submitted to a Ray head, a killed job, a resume."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from soda_dist.config import dump_config
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.runs.folder import complete_steps
from soda_dist.runs.metrics_log import read_lines
from tests.evaluation.small_run import small_data
from tests.rules.test_cli import STORAGE, forked
from tests.rules.test_cli import job as own_process
from tests.system.head import Head, running_head, wait_for
from tests.tiny import tiny_config
from tests.training.plain_run import train_plainly

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1200)]

ROOT = Path(__file__).parents[2]
EXACT = ("step", "images", "epoch", "loss", "grad_norm", "lr")


@pytest.fixture(scope="module")
def head(s3_server: str) -> Iterator[Head]:
    with running_head(3) as head:
        yield head


def done(head: Head, *command: str) -> str:
    """What a job printed that must succeed."""
    return head.start(ROOT, [sys.executable, *command]).wait(480)


CONFIG = tiny_config(train={"steps": 40, "global_batch": 8, "log_every_steps": 5, "checkpoint_every_steps": 5})
"""By the torch engine, so that a process without Ray computes the same to the last bit."""


def preset(tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(dump_config(CONFIG))
    return str(path)


def exact(run: Folder) -> list[list[float]]:
    return [[line[name] for name in EXACT] for line in read_lines(run, "metrics.jsonl")]


def weights(run: Folder) -> bytes:
    return run.read(f"checkpoints/{complete_steps(run)[-1]:09d}/state-00000-of-00001-00000.safetensors")


def driver_of(run_uri: str) -> int:
    """The process of the job that trains `run_uri`."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except (ProcessLookupError, FileNotFoundError):
            continue
        if words[0].endswith(b"python") and words[1] == b"jobs/pretrain.py" and run_uri.encode() in words:
            return int(folder.name)  # not `ray job submit`, which has the same words further on
    raise AssertionError(f"no process trains {run_uri}")


def test_prepare_pretrain_kill_resume_evaluate(head: Head, tmp_path: Path, s3_uri: str) -> None:
    """A job that was killed and submitted again ends, bit for bit, as a plain process that nothing disturbs."""
    data, killed = f"{s3_uri}/data", f"{s3_uri}/killed"
    done(head, "jobs/prepare_data.py", "synthetic", "--data", data, "objects=96", "views=1", "size=16")
    assert open_folder(data).exists("manifest.json")

    straight = train_plainly(data, CONFIG, str(tmp_path / "straight"))
    # The whole job is killed between two checkpoints, as a lost head would.
    again = ["jobs/pretrain.py", "--preset", preset(tmp_path), "--data", data, "--run", killed]
    output = tmp_path / "killed.log"
    job = head.submit(ROOT, [sys.executable, *again], output)
    wait_for(lambda: bool(complete_steps(open_folder(killed))), 300, lambda: output.read_text() + head.logs())
    os.kill(driver_of(killed), signal.SIGKILL)
    job.wait(timeout=60)
    printed = done(head, *again)
    run = open_folder(killed)
    assert "resuming from step" in printed and "step 40/40" in printed, printed
    assert complete_steps(run) == [35, 40]
    assert exact(run) == exact(straight)
    assert weights(run) == weights(straight)

    command = ["jobs/evaluate.py", "--run", killed, "--data", data, "--tasks", "probe,knn,reconstruction"]
    printed = done(head, *command, "evaluation.actors=1")
    assert f"{killed}/report.html" in printed
    probe = run.read_json("eval/40/probe.json")
    assert 0 <= probe["value"] <= 1
    assert run.read("eval/40/reconstruction.png").startswith(b"\x89PNG")
    assert b"<html" in run.read("report.html")


WRONG_PLACES = {
    "s3://no-such-bucket-here/data": "a bucket that does not exist",
    "{bucket}/empty": "manifest.json",
}


def test_wrong_places_are_one_line_and_exit_2(s3_uri: str, tmp_path: Path) -> None:
    base = ("pretrain.py", "--preset", "demo", "--run", str(tmp_path / "run"))
    commands = [(*base, "--data", uri.format(bucket=s3_uri)) for uri in WRONG_PLACES]
    for ended, says in zip(forked(commands, shared=(*STORAGE, "boto3")), WRONG_PLACES.values(), strict=True):
        assert ended.returncode == 2, ended.stderr
        assert says in ended.stderr and ended.stderr.count("\n") == 1, ended.stderr


@pytest.mark.long  # a data worker's refusal also ends a stream in tests/distributed/test_ingest_faults.py
def test_an_altered_shard_is_named_by_the_worker_that_reads_it(tmp_path: Path) -> None:
    """By a job that starts a cluster of its own."""
    small_data(tmp_path / "data")
    shard = tmp_path / "data/train/00000.parquet"
    shard.write_bytes(shard.read_bytes().replace(b"IDAT", b"IDOT"))
    run = tmp_path / "run"
    command = ("pretrain.py", "--preset", preset(tmp_path), "--data", str(tmp_path / "data"), "--run", str(run))
    ended = own_process(*command)
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert "00000.parquet" in ended.stderr and ended.stderr.count("\n") == 1, ended.stderr
    assert json.loads((run / "provenance.json").read_text())
