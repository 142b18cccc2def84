"""A comparison's page: curves of the runs together, the fields in which they differ, pictures side by side."""

import base64
import json
from pathlib import Path

import pytest

from soda_dist.config import load_config
from soda_dist.data.storage.folder import open_folder
from soda_dist.report.comparison import compare
from soda_dist.report.config_differences import between, from_preset, preset_of
from tests.report.evaluated_runs import imagenet
from tests.report.html_page import HtmlPage


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    """Two runs with other seeds and widths, lines of training, and a picture each."""
    uris = [imagenet(tmp_path, f"seed={seed}", "encoder.width=0.5", name=f"run{seed}") for seed in (1, 2)]
    for number, uri in enumerate(uris):
        run = open_folder(uri)
        lines = [{"step": step, "loss": 1.0 / step} for step in range(1, 5)]
        run.write("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
        run.write("eval/1000/reconstruction.png", f"picture {number}".encode())
        run.write("eval/900/samples.png", b"another step")
    return uris


def test_the_page_shows_curves_differences_and_pictures_of_all_runs(runs: list[str]) -> None:
    page = HtmlPage(compare(runs, "1", "html"))
    assert {"run1", "run2"} <= set(page.sections["curves"].split())
    assert sum(tag == "svg" and bool(found.get("role")) for tag, found in page.tags) == 1, "one curve, for both"
    assert page.sections["configurations"].split()[-1] == "seed12", "the width is the same"
    pictures = [base64.b64decode(str(found["src"]).split(",")[1]) for tag, found in page.tags if tag == "img"]
    assert pictures == [b"picture 0", b"picture 1"]
    assert all(found["alt"] for tag, found in page.tags if tag == "img")


def test_damaged_metrics_are_named_and_cost_the_run_its_line(runs: list[str]) -> None:
    open_folder(runs[0]).write("metrics.jsonl", b"{\n")
    with pytest.raises(Exception, match=r"metrics\.jsonl, line 1"):
        compare(runs, "1")  # a table needs the epochs
    one = HtmlPage(compare(runs[1:], "1", "html"))
    assert "nothing to compare" in one.sections["configurations"]


def test_a_configuration_is_compared_with_the_preset_of_its_command() -> None:
    config = load_config("demo", ["train.steps=70"])
    preset = preset_of([{"command": "pretrain.py --preset demo --data x"}, {"command": "pretrain.py --preset small"}])
    found = from_preset(config, preset)
    assert [(each.field, each.values) for each in found.own] == [("train.steps", ("70", "1800"))]
    assert ("encoder.latent_dim", ("256", "2048")) in [(each.field, each.values) for each in found.of_preset]
    assert {each.field for each in from_preset(config, None).own} == {
        *(each.field for each in found.of_preset), "train.steps",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("command", "preset"),
    [
        ("pretrain_imagenet.py --data x", "imagenet"),
        ("pretrain.py --preset=cifar10", "cifar10"),
        ("pretrain.py --preset mine.yaml", None),
        ("pretrain.py --preset 'open", None),
        ("", None),
    ],
)
def test_the_preset_is_found_in_the_command_of_the_first_start(command: str, preset: str | None) -> None:
    assert preset_of([{"command": command}]) == preset


def test_fields_that_only_some_runs_have_are_differences() -> None:
    found = between([{"a": 1, "b": {"c": [1, 2]}}, {"a": 1, "b": {}}])
    assert [(each.field, each.values) for each in found] == [("b.c", ("[1,2]", "–"))]
