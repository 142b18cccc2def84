"""TensorBoard, Weights & Biases offline and MLflow on a file: points, pictures, resumes, and errors."""

import struct
import zlib
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from soda_dist.config.load import with_fields
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.errors import UserError
from soda_dist.runs.folder import TRACKERS, write_config
from soda_dist.runs.metrics_log import METRICS, read_lines
from soda_dist.training.context import LocalContext
from soda_dist.training.loop import fit
from soda_dist.training.observers import trackers as module
from soda_dist.training.observers.observer import Guarded, Ledger
from soda_dist.training.observers.tensorboard import TensorBoard
from soda_dist.training.observers.trackers import check_trackers, open_observers
from tests.tiny import feed, tiny_config
from tests.training.test_engine import engine_of


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


PNG = b"\x89PNG\r\n\x1a\n" + b"".join(
    (
        _chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 2, 8, 2, 0, 0, 0)),
        _chunk(b"IDAT", zlib.compress(2 * (b"\0" + 9 * b"\x80"))),
        _chunk(b"IEND", b""),
    )
)
"""3 x 2 pixels."""


def attempt(observer: Any, begin: int, steps: range) -> None:
    """One start of a run that logs these steps; the loss is a function of the step."""
    observer.start(begin)
    for step in steps:
        if step == 3:
            observer.picture(step, "validation", PNG)
        observer.metrics(step, {"step": step, "loss": 1 / step, "stopped": False, "time": 1e9})
    observer.close()


def resumed(make: Any) -> None:
    """A run that was killed after step 5, and resumed from its checkpoint of step 2."""
    attempt(make(), 0, range(1, 6))
    attempt(make(), 2, range(3, 8))


@pytest.fixture
def run(tmp_path: Path) -> Folder:
    folder = open_folder(str(tmp_path / "a run"))
    write_config(folder, tiny_config())
    return folder


EXPECTED = [(step, pytest.approx(1 / step)) for step in range(1, 8)]


def _points(place: str) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(place).Reload()


def test_tensorboard_has_each_step_once(run: Folder) -> None:
    resumed(lambda: TensorBoard(run))
    found = _points(f"{run.uri}/tensorboard")
    assert [(point.step, point.value) for point in found.Scalars("loss")] == EXPECTED
    assert sorted(found.Tags()["scalars"]) == ["loss", "stopped"]
    (image,) = found.Images("validation")
    assert (image.step, image.width, image.height, image.encoded_image_string) == (3, 3, 2, PNG)


class Remote:
    """A run's folder that says that it is in an object store."""

    is_local = False

    def __init__(self, run: Folder) -> None:
        self.child = run.child


def test_event_files_reach_a_folder_that_cannot_append(run: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = SimpleNamespace(time=count(1_000_000_000).__next__)  # names of files in one second sort as text
    monkeypatch.setattr("tensorboard.summary.writer.event_file_writer.time", seconds)
    monkeypatch.setattr("soda_dist.training.observers.tensorboard.COPIED_BYTES", 0)
    resumed(lambda: TensorBoard(Remote(run)))  # type: ignore[arg-type]
    assert len(run.list("tensorboard/")) > 2, "full files are followed by new ones"
    assert [(point.step, point.value) for point in _points(f"{run.uri}/tensorboard").Scalars("loss")] == EXPECTED


def test_wandb_continues_one_run_and_sends_each_step_once(run: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    made: list[dict[str, Any]] = []
    logged: list[tuple[int, dict[str, Any]]] = []

    class Run:
        def log(self, values: dict[str, Any], step: int) -> None:
            logged.append((step, values))

        def finish(self) -> None:
            made[-1]["finished"] = True

    settings = SimpleNamespace(settings=SimpleNamespace(mode="offline"))
    monkeypatch.setattr(wandb, "setup", lambda: settings)  # which starts a process
    monkeypatch.setattr(wandb, "init", lambda **given: (made.append(given), Run())[1])
    resumed(lambda: open_observers(["wandb"], run, pytest.fail))
    assert [each["id"] for each in made] == [run.read_json(TRACKERS)["wandb"]["id"]] * 2
    assert all(each["resume"] == "allow" and each["finished"] and each["config"]["seed"] == 0 for each in made)
    assert [(step, values["loss"]) for step, values in logged if "loss" in values] == EXPECTED
    assert [step for step, values in logged if "validation" in values] == [3]


def test_mlflow_continues_one_run_and_sends_each_step_once(
    run: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/store")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    resumed(lambda: open_observers(["mlflow"], run, pytest.fail))
    client = mlflow.MlflowClient()
    (found,) = client.search_runs([client.get_experiment_by_name("soda_dist").experiment_id])
    assert found.info.run_name == "a run" and found.info.status == "FINISHED"
    assert found.data.params["optim.lr"] == "0.001"
    points = client.get_metric_history(found.info.run_id, "loss")
    assert sorted((point.step, point.value) for point in points) == EXPECTED
    assert [each.path for each in client.list_artifacts(found.info.run_id, "validation")] == [
        "validation/000000003.png"
    ]


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    check_trackers(["tensorboard"])
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"train\.trackers: got wandb, .*pip install 'soda_dist\[wandb\]'"):
        check_trackers(["wandb"])
    with pytest.raises(UserError, match=r"train\.trackers"):
        with_fields(tiny_config(), {"train.trackers": ["comet"]})


class Failing:
    """An observer that fails at a call."""

    def __init__(self, call: str) -> None:
        self.call, self.calls = call, list[str]()

    def __getattr__(self, name: str) -> Any:
        def called(*given: object) -> None:
            self.calls.append(name)
            if name == self.call:
                raise OSError("disk full\nand more")

        return called


@pytest.mark.parametrize("call", ["start", "metrics", "picture", "close"])
def test_an_error_is_said_once_and_switches_one_observer_off(call: str) -> None:
    said, bad, good = list[str](), Failing(call), Failing("none")
    attempt(Guarded({"bad": lambda: bad, "good": lambda: good}, said.append), 0, range(1, 5))  # type: ignore[dict-item]
    assert said == ["bad is off for the rest of this run (OSError: disk full); training continues"]
    assert bad.calls.count(call) == 1 and bad.calls[-1] == call
    assert good.calls == ["start", "metrics", "metrics", "picture", "metrics", "metrics", "close"]


def test_training_is_the_same_whatever_watches_it(tmp_path: Path) -> None:
    config, said = tiny_config(train={"steps": 4}), list[str]()
    watchers = [None, Guarded({"bad": lambda: Failing("metrics"), "board": lambda: TensorBoard(runs[1])}, said.append)]  # type: ignore[dict-item]
    runs = [open_folder(str(tmp_path / name)) for name in ("plain", "watched")]
    for folder, observer in zip(runs, watchers, strict=True):
        fit(LocalContext(), engine_of(config), config, feed(config), folder, 100, observer=observer)
    assert len(said) == 1
    watchers[1].close()  # type: ignore[union-attr]
    name = "checkpoints/000000004/state-00000-of-00001-00000.safetensors"
    assert runs[0].read(name) == runs[1].read(name)
    logged = [(line["step"], pytest.approx(line["loss"])) for line in read_lines(runs[1], METRICS)]
    points = _points(f"{runs[1].uri}/tensorboard").Scalars("loss")
    assert [(point.step, point.value) for point in points] == logged


def test_a_damaged_record_of_trackers_is_refused(run: Folder) -> None:
    run.write_json(TRACKERS, {"wandb": {"id": 3, "step": 0}})
    with pytest.raises(UserError, match=r"trackers\.json"):
        Ledger(run, "wandb")
