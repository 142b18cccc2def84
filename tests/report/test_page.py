"""The page: its numbers are those of the files, it is self-contained, and it stands with parts missing."""

import base64
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from soda_dist.config import dump_config, load_config
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.plots.image_grid import image_grid
from soda_dist.report.page import write_report
from tests.report.evaluated_runs import ROWS, dci, gso

SMALL = str(Path(__file__).parents[1] / "config" / "small.yaml")

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Tags with their attributes, text by section, and cells with a value."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.sections: dict[str, str] = {}
        self.cells: list[tuple[str, float, str]] = []
        self._section = self._table = ""
        self._cell: tuple[float, list[str]] | None = None
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self._section = str(found["id"])
        if tag == "table":
            self._table = str(found["id"])
        if tag == "td" and "data-value" in found:
            self._cell = (float(str(found["data-value"])), [])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "td" and self._cell:
            self.cells.append((self._table, self._cell[0], "".join(self._cell[1])))
            self._cell = None

    def handle_data(self, data: str) -> None:
        self.sections[self._section] = self.sections.get(self._section, "") + data
        if self._cell:
            self._cell[1].append(data)


def _estimate(value: float, error: float = 0.0125) -> dict[str, float]:
    return {"value": value, "standard_error": error}


def _result(step: int, top1: dict[str, float]) -> dict[str, object]:
    return {
        "step": step,
        "label": "shape",
        "classes": 4,
        "majority": 0.2512,
        "splits": {"train": "train", "test": "test"},
        "counts": {"train": 2000, "test": 500, "unreadable_train": 3, "unreadable_test": 1},
        "encoders": {name: {"estimates": {"top1": _estimate(value)}} for name, value in top1.items()},
    }


@pytest.fixture
def run(tmp_path: Path) -> Folder:
    """A run with everything, evaluated at two steps."""
    run = open_folder(str(tmp_path / "runs" / "a<b>&c"))
    run.write("config.yaml", dump_config(load_config(SMALL)).encode())
    first = {
        "time": "2024-01-01T00:00:00Z",
        "commit": "first",
        "command": "pretrain.py --x '<script>'",
        "packages": {"torch": "1.2.3"},
    }
    run.write_json("provenance.json", [first, {**first, "commit": "second"}])
    lines = [
        {"step": 20 * i, "images": 1280 * i, "epoch": i / 8, "loss": 1.0 / i, "grad_norm": 0.5, "lr": 1e-3,
         "images_per_second": 70.0 + i, "wait_fraction": 0.01}
        for i in range(1, 31)
    ]  # fmt: skip
    run.write("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    bad = [{"step": 20, "key": i % 3, "name": f"bad{i % 3}.jpg"} for i in range(7)]
    run.write("quarantine.jsonl", "".join(json.dumps(line) + "\n" for line in bad).encode())
    run.write_json(
        "eval/000000600/probe.json", _result(600, {"trained": 0.93417, "untrained": 0.5512, "pixels": 0.6123})
    )
    run.write_json("eval/000000600/knn.json", _result(600, {"trained": 0.8701, "untrained": 0.4444, "pixels": 0.5}))
    run.write_json("eval/000000200/probe.json", _result(200, {"trained": 0.71, "untrained": 0.55}))
    scores = {"psnr": {"value": 21.3456, "standard_error": 0.44}, "ssim": {"value": 0.71234, "standard_error": 0.021}}
    run.write_json(
        "eval/000000600/reconstruction.json", {"step": 600, "images": 8, "guidance": {"1": scores, "2": scores}}
    )
    run.write("eval/000000600/samples.png", image_grid([[np.zeros((8, 8, 3), np.uint8)]], ["source"]))
    return run


def _page(run: Folder) -> Page:
    uri = write_report(run.uri)
    assert uri == run.file_uri("report.html")
    return Page(run.read("report.html").decode())


def test_the_numbers_in_the_tables_are_those_of_the_files(run: Folder) -> None:
    page = _page(run)
    cells = [(value, text) for table, value, text in page.cells if table == "results"]
    expected = [0.93417, 0.5512, 0.6123, 0.8701, 0.4444, 0.5, 0.71, 0.55]
    assert [value for value, _ in cells] == expected
    for value, text in cells:
        assert text == f"{100 * value:.1f}% ± 1.2"
    assert "not measured" in page.sections["representation"]
    reconstruction = [(value, text) for table, value, text in page.cells if table == "reconstruction"]
    assert reconstruction == [(21.3456, "21.35 ± 0.44"), (0.71234, "0.712 ± 0.021")] * 2


def test_the_curve_of_a_probe_that_was_trained_along_is_shown_where_there_is_one(run: Folder) -> None:
    title = "Online probe accuracy"
    write_report(run.uri)
    assert title not in run.read("report.html").decode()
    lines = [json.loads(line) for line in run.read("metrics.jsonl").splitlines()]
    probed = [{**line, "probe_accuracy": 0.1 + line["step"] / 1000, "probe_loss": 1.0} for line in lines]
    run.write("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in probed).encode())
    write_report(run.uri)
    assert title in run.read("report.html").decode()


def test_the_head_of_the_page_states_the_last_step_and_the_latest_probe(run: Folder) -> None:
    head = _page(run).sections[""]
    for text in ("600 of 600", "38,400", "0.0333", "85.5", "93.4%", "55.1%", "61.2%"):
        assert text in head


def test_notes_say_what_was_measured_on_what(run: Folder) -> None:
    text = _page(run).sections["representation"]
    assert "Step 600, linear probe: shape (4 classes) from 2,000 images of train, measured on 500 of test" in text
    assert "the most frequent class makes up 25.1%. 4 images could not be read." in text


def test_the_page_refers_to_nothing_outside_itself(run: Folder) -> None:
    page = _page(run)
    text = run.read("report.html").decode()
    assert all(tag not in ("script", "link", "iframe", "object", "base") for tag, _ in page.tags)
    references = [
        str(value)
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster")
    ]
    assert references and all(reference.startswith(("data:", "#")) for reference in references)
    assert "@import" not in text and "url(h" not in text and "http" not in text


def test_every_curve_and_picture_is_embedded(run: Folder) -> None:
    page = _page(run)
    assert sum(tag == "svg" for tag, _ in page.tags) == 5
    (source,) = [str(attributes["src"]) for tag, attributes in page.tags if tag == "img"]
    assert base64.b64decode(source.split(",")[1]) == run.read("eval/000000600/samples.png")


def test_names_from_outside_are_text_and_never_markup(run: Folder) -> None:
    page = _page(run)
    assert "--x '<script>'" in page.sections["provenance"]
    assert "a<b>&c" in page.sections[""]


def test_quarantined_images_are_counted_once_and_listed(run: Folder) -> None:
    text = _page(run).sections["training"]
    assert "Images that could not be read in training: 3; 7 failed reads." in text
    assert "bad0.jpg\nbad1.jpg\nbad2.jpg" in text


def test_the_configuration_and_every_start_are_shown(run: Folder) -> None:
    text = _page(run).sections["provenance"]
    assert run.read("config.yaml").decode() in text
    assert text.index("second") < text.index("Earlier starts (1)") < text.index("first")
    assert "torch 1.2.3" in text


def test_a_run_with_nothing_but_its_configuration_says_what_is_missing(tmp_path: Path) -> None:
    run = open_folder(str(tmp_path / "run"))
    run.write("config.yaml", dump_config(load_config(SMALL)).encode())
    page = _page(run)
    assert f"python jobs/evaluate.py --run {run.uri} --data URI --tasks probe,knn" in page.sections["representation"]
    assert f"python jobs/evaluate.py --run {run.uri} --data URI --tasks reconstruction" in page.sections["samples"]
    assert f"python jobs/pretrain.py --preset NAME --data URI --run {run.uri}" in page.sections["training"]
    assert "No provenance.json" in page.sections["provenance"]
    assert "could not be read in training: 0" in page.sections["training"]
    assert page.cells == [] and all(tag not in ("svg", "img", "table") for tag, _ in page.tags)


def test_an_empty_folder_still_gives_a_page(tmp_path: Path) -> None:
    assert "No config.yaml" in _page(open_folder(str(tmp_path / "none"))).sections["provenance"]


def test_a_second_report_replaces_the_first(run: Folder) -> None:
    before = _page(run).cells
    run.write_json("eval/000000800/probe.json", _result(800, {"trained": 0.99}))
    after = _page(run).cells
    assert after[0][1] == 0.99 and after[1:] == before


def test_figures_of_disentanglement_novel_views_and_fid_are_on_the_page(tmp_path: Path) -> None:
    uri = gso(tmp_path)
    result = dci(ROWS["gso"], 0.6123, 0.5, 0.9) | {"factors": ["a", "b"]}
    open_folder(uri).write_json("eval/1000/dci.json", result)
    page = Page(Path(write_report(uri)).read_text())
    shown = [(value, text.strip()) for table, value, text in page.cells if table == "figures"]
    for expected in [(0.6123, "61.2"), (21.123, "21.12 ± 0.00"), (3.456, "3.46"), (0.1222, "0.122 ± 0.001")]:
        assert shown.count(expected) == 1
    assert len(shown) == 3 + 2 * 3 + 2 * 2, "three of DCI, PSNR, SSIM and LPIPS of two sets, FID and KID of two"
    for of in ("DCI over 2 factors", "novel views, sources: 3, stochastic", "reconstruction"):
        assert of in page.sections["samples"]
