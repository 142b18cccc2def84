"""The page: its numbers are those of the files, it is self-contained, and it stands with parts missing or damaged."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from soda_dist.config import dump_config, load_config
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.plots.image_grid import image_grid
from soda_dist.report.page import write_report
from tests.report.evaluated_runs import ROWS, dci, gso
from tests.report.html_page import HtmlPage, missing_numbers
from tests.sizes import sized

SMALL = str(Path(__file__).parents[1] / "config" / "small.yaml")


def _estimate(value: float, error: float = 0.0125) -> dict[str, float]:
    return {"value": value, "standard_error": error}


def _result(task: str, step: int, top1: dict[str, float]) -> dict[str, object]:
    return {
        "task": task,
        "step": step,
        "metric": "top1",
        **_estimate(next(iter(top1.values()))),
        "label": "shape",
        "classes": 4,
        "majority": 0.2512,
        "splits": {"train": "train", "test": "test"},
        "counts": {"train": 2000, "test": 500, "unreadable_train": 3, "unreadable_test": 1},
        "encoders": {name: {"estimates": {"top1": _estimate(value)}} for name, value in top1.items()},
    }


def _lines(count: int, **more: float) -> bytes:
    lines = [
        {"step": 20 * i, "images": 1280 * i, "epoch": i / 8, "loss": 1.0 / i, "grad_norm": 0.5, "lr": 1e-3,
         "images_per_second": 70.0 + i, "wait_fraction": 0.01, **more}
        for i in range(1, count + 1)
    ]  # fmt: skip
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


@pytest.fixture
def run(tmp_path: Path) -> Folder:
    """A run with everything but the lines of its training, evaluated at two steps."""
    run = open_folder(str(tmp_path / "runs" / "a<b>&c"))
    run.write("config.yaml", dump_config(load_config(SMALL)).encode())
    first = {
        "time": "2024-01-01T00:00:00Z",
        "commit": "first",
        "command": "pretrain.py --x '<script>'",
        "packages": {"torch": "1.2.3"},
        "data": {"uri": "/data/<i>", "digest": "d", "rows": 5120},
    }
    run.write_json("provenance.json", [first, {**first, "commit": "second"}])
    bad = [{"step": 20, "key": i % 3, "name": f"bad{i % 3}.jpg"} for i in range(7)]
    run.write("quarantine.jsonl", "".join(json.dumps(line) + "\n" for line in bad).encode())
    three = {"trained": 0.93417, "untrained": 0.5512, "pixels": 0.6123}
    run.write_json("eval/600/probe.json", _result("probe", 600, three))
    run.write_json("eval/600/knn.json", _result("knn", 600, {"trained": 0.8701, "untrained": 0.4444, "pixels": 0.5}))
    run.write_json("eval/200/probe.json", _result("probe", 200, {"trained": 0.71, "untrained": 0.55}))
    scores = {"psnr": {"value": 21.3456, "standard_error": 0.44}, "ssim": {"value": 0.71234, "standard_error": 0.021}}
    run.write_json("eval/600/reconstruction.json", {"step": 600, "images": 8, "guidance": {"1": scores, "2": scores}})
    run.write("eval/600/samples.png", image_grid([[np.zeros((8, 8, 3), np.uint8)]], ["source"]))
    return run


@pytest.fixture
def trained(run: Folder) -> Folder:
    """The same with 30 lines of training."""
    run.write("metrics.jsonl", _lines(30))
    return run


def _page(run: Folder) -> HtmlPage:
    uri = write_report(run.uri)
    assert uri == run.file_uri("report.html")
    return HtmlPage(run.read("report.html").decode())


def _path(run: Folder) -> Path:
    return Path(run.uri)


def test_every_number_of_every_result_is_on_the_page(run: Folder) -> None:
    page = _page(run)
    assert missing_numbers(_path(run), page) == []
    run.write_json(
        "eval/600/dci.json", {"share": [[0.125, 0.25], [0.625, 0.75]], "others": {"mig": 0.375, "x": {"y": 7.5}}}
    )
    assert len(missing_numbers(_path(run), page)) == 6, "the check sees what an older page lacks"
    assert missing_numbers(_path(run), _page(run)) == []


def test_numbers_are_shown_in_the_units_of_their_measure(run: Folder) -> None:
    page = _page(run)
    texts = dict(page.values)
    assert texts[0.93417] == "93.4 %" and texts[0.0125] == "± 1.2" and texts[0.2512] == "25.1 %"
    assert texts[21.3456] == "21.35 dB" and texts[0.44] == "± 0.44"
    assert texts[0.71234] == "0.712" and texts[2000] == "2,000"
    (row,) = [row for row in page.older["result-probe"] if row[0] == "200"]
    assert row[1] == "0.71 ± 0.0125"


def test_a_second_page_shows_the_newest_step_and_folds_the_one_before(run: Folder) -> None:
    _page(run)
    run.write_json("eval/800/probe.json", _result("probe", 800, {"trained": 0.99}))
    page = _page(run)
    assert [row[0] for row in page.older["result-probe"]] == ["step", "600", "200"]
    assert "step 800" in page.sections["result-probe"] and "step 600" in page.sections["result-knn"]
    assert missing_numbers(_path(run), page) == []


def test_the_head_says_what_was_trained_how_far_and_with_which_result(trained: Folder) -> None:
    head = " ".join(_page(trained).sections["summary"].split())
    for text in (
        "a<b>&c training", "SODA (resnet18, latent of ", "on 5,120 rows (/data/<i>)", "600 of 600", "38,400",
        "0.0333", "85.5", "93.4 %", "untrained 55.1 %", "raw pixels 61.2 %",
    ):  # fmt: skip
        assert text in head, text


def test_the_state_is_training_until_the_attempt_ends_or_its_last_checkpoint_is_written(run: Folder) -> None:
    def state() -> str:
        return " ".join(_page(run).sections["summary"].split())[len("a<b>&c ") :][:60]

    assert state().startswith("training")
    assert "the first lines of metrics.jsonl follow soon" in _page(run).sections["training"]
    starts = run.read_json("provenance.json")
    ended = {"time": "2024-01-01T00:01:00Z", "reason": "interrupted"}
    run.write_json("provenance.json", [starts[0], {**starts[1], "ended": ended}])
    assert state().startswith("stopped")
    run.write("checkpoints/000000200/manifest.json", b"{}")
    assert "resume from step 200" in _page(run).sections["summary"]
    run.write("checkpoints/000000600/manifest.json", b"{}")
    assert state().startswith("finished")
    stopped = {"step": 200, "reason": "loss did not improve"}
    run.write_json("provenance.json", [{**starts[0], "stopped": stopped}])
    assert "Stopped early at step 200: loss did not improve." in _page(run).sections["summary"]


def test_curves_are_those_of_the_fields_that_are_logged(trained: Folder) -> None:
    run = trained

    def titles() -> set[str]:
        text = _page(run).sections["training"]
        known = ("Loss", "Online probe accuracy", "Validation loss", "Validation retrieval", "Learning rate")
        return {title for title in known if title in text}

    assert titles() == {"Loss", "Learning rate"}
    run.write("metrics.jsonl", _lines(30) + b'{"step": 610, "validation_loss": 0.5}\n')
    assert titles() == {"Loss", "Learning rate", "Validation loss"}
    run.write("metrics.jsonl", _lines(30, probe_accuracy=0.5, validation_retrieval=0.25))
    assert titles() == {"Loss", "Learning rate", "Online probe accuracy", "Validation retrieval"}


def test_the_page_refers_to_nothing_outside_itself_and_names_every_picture(trained: Folder) -> None:
    page = _page(trained)
    text = trained.read("report.html").decode()
    assert all(tag not in ("script", "iframe", "object", "base") for tag, _ in page.tags)
    references = [
        str(value)
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster")
    ]
    assert references and all(reference.startswith(("data:", "#")) for reference in references)
    assert "@import" not in text and "url(h" not in text and "http" not in text
    targets = {f"#{attributes['id']}" for _, attributes in page.tags if attributes.get("id")}
    assert {reference for reference in references if reference.startswith("#")} <= targets
    for tag, attributes in page.tags:
        assert tag != "img" or attributes["alt"]
        assert tag != "svg" or attributes["aria-label"]


def test_pictures_are_embedded_the_newest_of_each_name(run: Folder) -> None:
    run.write("eval/200/samples.png", b"old")
    run.write("eval/200/sweep.png", b"sweep of 200")
    run.write("eval/600/without-ema/samples.png", b"without")
    for step in range(1, 31):
        run.write(f"validation/{step}.png", f"held out {step}".encode())
    page = _page(run)
    sources = [str(attributes["src"]) for tag, attributes in page.tags if tag == "img"]
    found = [base64.b64decode(source.split(",")[1]) for source in sources]
    assert found[0] == b"held out 30" and found[1] == b"held out 29" and b"held out 1" in found and len(found) == 9 + 3
    assert found[9:] == [b"sweep of 200", run.read("eval/600/samples.png"), b"without"]
    opened = [tag for tag, attributes in page.tags if tag == "details" and "open" in attributes]
    assert len(opened) == 2, "the newest of validation, and the first topic"


def test_names_from_outside_are_text_and_never_markup(run: Folder) -> None:
    hostile = "<script>alert(1)</script>"
    run.write_json(
        f"eval/600/{hostile.replace('/', '')}.json", {"metric": hostile, "value": 0.5, hostile: {hostile: 2}}
    )
    run.write(f"eval/600/{hostile.replace('/', '')}.png", b"x")
    page = _page(run)
    assert "--x '<script>'" in page.sections["provenance"] and "a<b>&c" in page.sections["summary"]
    assert hostile in page.sections["results"]
    assert all(tag not in ("script", "b>", "i") for tag, _ in page.tags)


def test_quarantined_images_are_counted_once_and_listed(run: Folder) -> None:
    text = _page(run).sections["unreadable"]
    assert "Images that could not be read in training: 3; 7 failed reads." in text
    assert "bad0.jpg\nbad1.jpg\nbad2.jpg" in text


def test_every_start_is_shown_the_latest_first(run: Folder) -> None:
    text = " ".join(_page(run).sections["provenance"].split())
    assert text.index("second") < text.index("Earlier starts 1") < text.index("first")
    assert "torch 1.2.3" in text


DAMAGE = {
    "a result": ("eval/600/knn.json", b"{"),
    "a result of other types": ("eval/600/knn.json", b'{"majority": "x"}'),
    "the metrics": ("metrics.jsonl", b"{"),
    "the configuration": ("config.yaml", b"seed: [1"),
    "the provenance": ("provenance.json", b"{}"),
    "the quarantine": ("quarantine.jsonl", b"x"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_file_is_named_and_costs_its_own_part_alone(what: str, run: Folder) -> None:
    name, content = DAMAGE[what]
    run.write(name, content)
    page = _page(run)
    problems = [line for line in page.sections["summary"].splitlines() if name in line]
    assert len(problems) == 1
    assert "93.4 %" in page.sections["result-probe"]
    assert ("result-knn" in page.sections) == ("knn" not in name)
    assert "svg" in {tag for tag, _ in page.tags}, "the curves of results stand without the metrics"


def test_an_unfinished_evaluation_shows_what_it_has(run: Folder) -> None:
    run.write_json("eval/700/probe.json", _result("probe", 700, {"trained": 0.95}))
    run.write("eval/700/without-ema/notes.txt", b"")
    page = _page(run)
    assert "Not measured: label_free, dci, samples, novel_views, fid, latents" in page.sections["results"]
    assert missing_numbers(_path(run), page) == []


def test_results_without_ema_stand_beside_the_others(run: Folder) -> None:
    run.write_json("eval/600/without-ema/probe.json", _result("probe", 600, {"trained": 0.875}))
    page = _page(run)
    assert "87.5 %" in page.sections["result-probe-without-ema"]
    assert "87.5 %" not in page.sections["result-probe"]


def test_a_run_with_nothing_but_its_configuration_says_what_is_missing(tmp_path: Path) -> None:
    run = open_folder(str(tmp_path / "run"))
    run.write("config.yaml", dump_config(load_config(SMALL)).encode())
    page = _page(run)
    assert f"python jobs/evaluate.py --run {run.uri} --data URI --tasks probe,knn" in page.sections["results"]
    assert f"python jobs/evaluate.py --run {run.uri} --data URI --tasks reconstruction" in page.sections["pictures"]
    assert f"python jobs/pretrain.py --preset NAME --data URI --run {run.uri}" in page.sections["training"]
    assert "No provenance.json" in page.sections["provenance"] and "not trained" in page.sections["summary"]
    assert "could not be read in training: 0" in page.sections["unreadable"]
    assert page.values == [] and all(tag not in ("svg", "img") for tag, _ in page.tags)


def test_an_empty_folder_still_gives_a_page(tmp_path: Path) -> None:
    assert "No config.yaml" in _page(open_folder(str(tmp_path / "none"))).sections["configuration"]


@sized("count", 100, long=1000)
def test_many_checkpoints_are_rows_of_a_page_of_bounded_size(count: int, tmp_path: Path) -> None:
    run = open_folder(str(tmp_path / "run"))
    run.write("config.yaml", dump_config(load_config(SMALL)).encode())
    run.write("metrics.jsonl", _lines(20 * count))
    for step in range(count):
        held_out = {f"0.{n}": 0.5 + step / 3e4 + n for n in range(20)}
        result = _result("probe", step, {"trained": step / 1000}) | {"details": held_out}
        run.write_json(f"eval/{step}/probe.json", result)
    page = _page(run)
    assert [row[0] for row in page.older["result-probe"][1:]] == [str(step) for step in range(count - 2, -1, -1)]
    assert len(run.read("report.html")) < 200_000 + 1000 * count


def test_figures_of_disentanglement_novel_views_and_fid_are_on_the_page(tmp_path: Path) -> None:
    uri = gso(tmp_path)
    result = dci(ROWS["gso"], 0.6123, 0.5, 0.9) | {"factors": ["a", "b"], "metric": "disentanglement"}
    open_folder(uri).write_json("eval/1000/dci.json", result)
    page = HtmlPage(Path(write_report(uri)).read_text())
    assert missing_numbers(Path(uri), page) == []
    for section, texts in {
        "result-dci": ("61.2 %", "disentanglement", "a, b"),
        "result-novel-views": ("21.12 dB", "0.122", "stochastic"),
        "result-fid": ("3.46", "reconstruction", "novel views"),
    }.items():
        for text in texts:
            assert text in page.sections[section], (section, text)
