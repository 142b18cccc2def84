"""Results of a run: by step and task, those of the EMA apart from the others, and a run as it was evaluated."""

import json
from pathlib import Path
from typing import Any

import pytest

from soda_dist.config import load_config
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.errors import UserError
from soda_dist.runs.folder import write_config
from soda_dist.runs.results import (
    Data,
    Stored,
    headlines,
    read_result,
    read_run,
    read_stored,
    stored_pictures,
    stored_results,
    validation_pictures,
    write_result,
)

SMALL = str(Path(__file__).parents[1] / "config" / "small.yaml")


@pytest.fixture
def run(tmp_path: Path) -> Folder:
    """The folder of a run that has only been configured, with a global batch of 64."""
    folder = open_folder(str(tmp_path / "run"))
    write_config(folder, load_config(SMALL, ()))
    return folder


def result(task: str, value: float = 0.0, **facts: Any) -> dict[str, Any]:
    """A result with a value."""
    return {"task": task, "value": value, **facts}


def measured(task: str, uri: str, second: int, **rows: int) -> dict[str, Any]:
    """A result that records its data and when it was made."""
    time = f"2024-01-01T00:00:{second:02d}Z"
    return result(task, data={"uri": uri, "kind": "cifar10", "rows": rows}, provenance={"time": time})


def listed(run: Folder) -> dict[tuple[int, str, bool], dict[str, Any]]:
    """All results of a run, in the order in which they are listed."""
    return {(each.step, each.title, each.ema): read_stored(run, each) for each in stored_results(run)}


def test_results_come_by_step_and_task(run: Folder) -> None:
    assert stored_results(run) == [] and read_result(run, 30, "probe") is None
    for step in (1000, 30):
        for task in ("probe", "knn"):
            write_result(run, step, result(task, step), {}, ema=True)
    write_result(run, 30, result("knn", 0.5), {}, ema=True)
    found = listed(run)
    assert list(found) == [(step, task, True) for step in (30, 1000) for task in ("knn", "probe")], "by the number"
    assert found[30, "probe", True] == result("probe", 30) and found[30, "knn", True] == result("knn", 0.5)
    assert read_result(run, 1000, "probe") == result("probe", 1000)
    assert read_result(run, 1000, "dci") is None


def test_results_without_ema_are_not_those_of_the_step(run: Folder) -> None:
    write_result(run, 30, result("probe", 0.9), {}, ema=True)
    write_result(run, 30, result("probe", 0.1), {"grid.png": b"raw"}, ema=False)
    write_result(run, 60, result("probe", 0.1), {}, ema=False)
    assert read_result(run, 30, "probe") == result("probe", 0.9)
    assert [key[::2] for key in listed(run)] == [(30, False), (30, True), (60, False)]
    assert listed(run)[30, "probe", False] == result("probe", 0.1)
    assert stored_pictures(run) == [Stored(30, "grid", False, "eval/30/without-ema/grid.png")]
    assert json.loads(run.read("eval/30/without-ema/probe.json")) == result("probe", 0.1)
    assert run.read("eval/30/without-ema/grid.png") == b"raw"


def test_pictures_are_named_by_step_and_title(run: Folder) -> None:
    write_result(run, 200, result("reconstruction"), {"grid.png": b"a", "guidance.png": b"b"}, ema=True)
    write_result(run, 30, result("reconstruction"), {"grid.png": b"c"}, ema=True)
    assert stored_pictures(run) == [
        Stored(30, "grid", True, "eval/30/grid.png"),
        Stored(200, "grid", True, "eval/200/grid.png"),
        Stored(200, "guidance", True, "eval/200/guidance.png"),
    ]


def test_pictures_of_validation_are_listed_by_step(run: Folder) -> None:
    for name in ("validation/1000.png", "validation/30.png", "validation/last.png", "validation/30.txt"):
        run.write(name, b"raw")
    assert [(each.step, each.name) for each in validation_pictures(run)] == [
        (30, "validation/30.png"),
        (1000, "validation/1000.png"),
    ]


def test_files_beside_the_steps_are_no_results(run: Folder) -> None:
    write_result(run, 30, result("probe"), {}, ema=True)
    for name in ("eval/notes.json", "eval/old/probe.json", "eval/30/notes.txt", "evaluation/30/knn.json"):
        run.write(name, b"{}")
    assert listed(run) == {(30, "probe", True): result("probe")}


def test_a_run_is_read_at_the_latest_step_or_at_a_named_one(run: Folder) -> None:
    for step in (1000, 30):
        write_result(run, step, result("probe", step), {}, ema=True)
    latest = read_run(run.uri)
    assert (latest.uri, latest.step, latest.results) == (run.uri, 1000, {"probe": result("probe", 1000)})
    assert read_run(run.uri, "30").results["probe"]["value"] == 30
    assert latest.field("train.global_batch") == 64
    assert latest.field("train.nothing") is latest.field("seed.nothing") is None
    with pytest.raises(UserError, match=f"--step: got 31 of {run.uri}; allowed: 30, 1000, latest"):
        read_run(run.uri, "31")


def test_what_was_never_evaluated_or_is_no_run_is_refused(run: Folder, tmp_path: Path) -> None:
    write_result(run, 30, result("probe"), {}, ema=False)
    with pytest.raises(UserError, match=f"--runs: got {run.uri}, which has no evaluation; .*--run {run.uri} --data"):
        read_run(run.uri)
    with pytest.raises(UserError, match=r"--runs: got .*/nothing, which has no config\.yaml"):
        read_run(f"{tmp_path}/nothing")


def test_the_data_are_those_of_the_latest_result_that_records_them(run: Folder) -> None:
    write_result(run, 30, result("dci", provenance={"time": "2024-01-01T00:00:59Z"}), {}, ema=True)
    assert read_run(run.uri).data is None
    write_result(run, 30, measured("probe", "/new", 30, train=640), {}, ema=True)
    write_result(run, 30, measured("knn", "/old", 10, train=9), {}, ema=True)
    assert read_run(run.uri).data == Data("/new", "cifar10", {"train": 640})


def test_epochs_are_of_the_metrics_or_else_of_the_rows(run: Folder) -> None:
    write_result(run, 30, result("probe"), {}, ema=True)
    assert read_run(run.uri).epochs is None
    write_result(run, 30, measured("probe", "/data", 0, train=640), {}, ema=True)
    assert read_run(run.uri).epochs == 30 * 64 / 640
    lines = [{"step": 10, "epoch": 0.5}, {"step": 20, "epoch": 1.0}, {"step": 40, "epoch": 9.0}]
    run.write("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    assert read_run(run.uri).epochs == 1.0 * 30 / 20, "the last line up to the step, continued"


def test_headlines_set_the_encoders_of_each_classification_side_by_side() -> None:
    encoders = {
        name: {"estimates": {"top1": {"value": value}}}
        for name, value in (("trained", 0.9123), ("untrained", 0.5), ("pixels", 0.25))
    }
    found = {"probe": {"metric": "top1", "label": "shape", "encoders": encoders}, "reconstruction": {"metric": "psnr"}}
    assert headlines(found) == ["linear probe of shape, top-1: trained 91.2 %, untrained 50.0 %, raw pixels 25.0 %"]
    assert headlines({"reconstruction": {"metric": "psnr"}}) == []
