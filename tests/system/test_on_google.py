"""The whole path on Google Cloud Storage, in one process: import, training, a stop, a resume, evaluation."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from soda_dist.data.preparation import check, prepare
from soda_dist.data.shards import read_manifest
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.evaluation import LocalPool, evaluate
from soda_dist.parallel.progress import silent
from soda_dist.report.page import write_report
from soda_dist.runs.folder import complete_steps
from tests.tiny import tiny_config
from tests.training.plain_run import train_plainly

pytestmark = pytest.mark.slow

CONFIG = tiny_config(train={"steps": 6, "global_batch": 8, "log_every_steps": 1, "checkpoint_every_steps": 2})


class StoppedError(Exception):
    pass


def at_step(number: int) -> Callable[[str], None]:
    def say(line: str) -> None:
        if line.startswith(f"step {number}/"):
            raise StoppedError

    return say


def write_images(folder: Folder) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for name, level in (("cat", 60), ("dog", 190)):
            for i in range(count):
                file = io.BytesIO()
                Image.fromarray((level + rng.integers(-40, 40, (16, 16, 3))).astype(np.uint8)).save(file, "PNG")
                folder.write(f"{split}/{name}/{i}.png", file.getvalue())


def state(run: Folder, step: int) -> bytes:
    return run.read(f"checkpoints/{step:09d}/state-00000-of-00001-00000.safetensors")


def test_import_training_a_stop_a_resume_and_evaluation(
    gcs_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("soda_dist.training.ticker.pause_s", lambda age: 0.0)  # shows every line
    source, data, run = (open_folder(f"{gcs_uri}/{name}") for name in ("source", "data", "run"))
    write_images(source)
    assert prepare("folder", source.uri, data.uri, ("rows_per_group=4",), LocalPool(), silent) == data.uri
    check(data.uri, None, LocalPool(), silent)
    manifest = read_manifest(data)
    assert manifest.labels["label"].names == ("cat", "dog") and manifest.split("test").rows == 8

    with pytest.raises(StoppedError):
        train_plainly(data.uri, CONFIG, run.uri, at_step(4))
    assert complete_steps(run) == [2]
    train_plainly(data.uri, CONFIG, run.uri)
    assert complete_steps(run) == [4, 6], "older checkpoints are removed"
    assert state(run, 6) == state(train_plainly(data.uri, CONFIG, str(tmp_path / "straight")), 6)

    for _ in range(2):  # the second time reads what the first left
        evaluate(run.uri, data.uri, "probe,knn", pool=LocalPool())
    assert 0.5 <= run.read_json("eval/6/knn.json")["value"] <= 1
    assert 0.5 <= run.read_json("eval/6/probe.json")["value"] <= 1
    write_report(run.uri)
    assert b"<html" in run.read("report.html")
