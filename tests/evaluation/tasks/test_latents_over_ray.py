"""The task latents on real actors: what is written, the same figures from any number of actors, latents made once."""

import html
from pathlib import Path

import pytest
from soda_dist.evaluation.evaluate import evaluate

from soda_dist.data.storage.folder import open_folder
from soda_dist.report.page import PICTURES, write_report
from tests.evaluation.small_run import small_data, train
from tests.tiny import tiny_config

TOOLS = {"images": 2, "directions": 2, "weights": 3, "noises": 2, "measured_images": 3, "ks": (-2.0, 2.0)}
EVALUATION = {"batch": 8, "probe": {"epochs": 20, "batch": 16, "learning_rates": (1e-2, 3e-2)}, "tools": TOOLS}
SHEETS = ("interpolation", "directions", "sections_traversal", "mixing", "resampled", "masking", "attributes")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("latents_task")
    small_data(path / "data")
    train(str(path / "run"), tiny_config(train={"steps": 3}, evaluation=EVALUATION))
    return path


@pytest.fixture(scope="module")
def calls(place: Path, cluster: None) -> list[tuple[dict, dict[str, bytes], list[str]]]:
    """(result, files of eval/3, what was said) of three calls: attributes by one actor, by two, then a class."""
    run, found = open_folder(str(place / "run")), []
    for label, actors in (("attributes", 1), ("attributes", 2), ("colour", 2)):
        said: list[str] = []
        overrides = [f"evaluation.label={label}", f"evaluation.actors={actors}"]
        result = evaluate(run.uri, str(place / "data"), "latents", "latest", overrides, said.append)["latents"]
        files = {entry.name: run.read(entry.name) for entry in run.list("eval/3/")}
        assert run.read_json("eval/3/latents.json") == result
        found.append((result, files, said))
    return found


@pytest.mark.ray
def test_every_picture_is_written_and_shown_on_the_page(cluster: None, place: Path, calls) -> None:
    result, files, said = calls[0]
    assert set(files) == {"eval/3/latents.json", *(f"eval/3/{name}.png" for name in SHEETS)}
    assert all(content.startswith(b"\x89PNG") for name, content in files.items() if name.endswith(".png"))
    text = html.unescape(Path(write_report(str(place / "run"))).read_text())
    assert all(PICTURES[f"{name}.png"] in text for name in SHEETS)
    assert result["counts"] == {"images": 2, "latents": 44, "train": 44} and result["measured_images"] == 3
    assert "effects of attributes: 15 of 15 images" in "\n".join(said)  # two attributes, two moves, and none


@pytest.mark.ray
def test_figures_do_not_depend_on_actors_and_moves_have_effects(cluster: None, calls) -> None:
    (one, pictures, _), (two, again, _) = calls[0], calls[1]
    aside = ("seconds", "provenance")
    assert {k: v for k, v in one.items() if k not in aside} == {k: v for k, v in two.items() if k not in aside}
    assert all(pictures[name] == again[name] for name in pictures if name.endswith(".png"))
    assert list(one["attributes"]) == ["bright", "late"]
    for rows in one["attributes"].values():
        assert [row["k"] for row in rows] == [-2.0, 0.0, 2.0]
        scores = [row["score"]["value"] for row in rows]
        assert [row["change"]["value"] for row in rows] == pytest.approx([score - scores[1] for score in scores])
        assert rows[0]["change"]["value"] != 0 and rows[2]["change"]["value"] != 0, "moves are heard"


@pytest.mark.ray
def test_a_second_call_encodes_nothing_again_and_a_class_has_a_direction_for_each_value(cluster: None, calls) -> None:
    there = "latents of train: 45 of 45 images are there from before"
    assert [there in said for _, _, said in calls] == [False, True, True]
    result = calls[2][0]
    assert (result["label"], result["kind"]) == ("colour", "class")
    assert list(result["attributes"]) == ["red", "green", "blue"] == list(result["sigmas"])
    assert set(result["attributes"]["red"][0]["others"]) == {"green", "blue"}
    assert result["directions"] == calls[0][0]["directions"], "principal directions need no label"
