"""The task latents: what the pictures show is what z says, and effects are those of the images."""

import html
import shutil
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from soda_dist.data.storage.folder import open_folder
from soda_dist.errors import UserError
from soda_dist.evaluation.images.decode_latents import LatentJob, decode_job, encode_inputs, section_of
from soda_dist.evaluation.images.sampling import SampleJob, draw, pick_inputs
from soda_dist.evaluation.task_runner import evaluate
from soda_dist.evaluation.tasks import latents
from soda_dist.evaluation.worker import Models
from soda_dist.models.condition import Condition, Sources
from soda_dist.models.soda import EncDec
from soda_dist.parallel.local_pool import LocalPool
from soda_dist.report.page import write_report
from soda_dist.report.run_pictures import CAPTIONS
from tests.evaluation.contexts import context_of, voiced, without_model
from tests.evaluation.scattered_pool import ScatteredPool
from tests.models.methods import config_of
from tests.tiny import tiny_config

pytestmark = pytest.mark.slow

TOOLS = {"directions": 2, "weights": 3, "noises": 2, "attributes": 3, "measured_images": 3, "ks": (-2.0, 0.0, 2.0)}
EVALUATION = {"batch": 16, "label": "attributes", "probe": {"epochs": 20, "batch": 16}, "tools": TOOLS}
NAMES = {"interpolation", "directions", "sections_traversal", "mixing", "resampled", "masking", "attributes"}


@pytest.fixture(scope="module")
def models(small_set: Path) -> Models:
    return voiced(tiny_config(data={"source_size": 20}, evaluation=EVALUATION), small_set)


def _plain(models: Models, count: int, noise: int = 0) -> np.ndarray:
    return draw(models, SampleJob(pick_inputs(models, count), models.config.sampling.guidance, noise, 0)).images


def _near(one, other) -> None:
    """Of equal images but for the last rounding."""
    assert np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 1


@pytest.fixture(scope="module")
def sheets(models: Models, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, tuple], dict, list[str]]:
    """(rows, columns, names) of each picture, what the JSON holds, and what was said."""
    shown: list[tuple] = []

    def grid(rows, columns, names=()) -> bytes:
        shown.append((rows, columns, names))
        return str(len(shown) - 1).encode()

    said: list[str] = []
    context = context_of(models, tmp_path_factory.mktemp("sheets"), said)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latents, "image_grid", grid)
        result = latents.draw_sheets(context)
    assert context.place.read_json("latents.json") == result
    names = [entry.name for entry in context.place.list() if entry.name.endswith(".png")]
    return {name: shown[int(context.place.read(name))] for name in names}, result, said


def test_every_picture_is_there_and_known_to_the_report(sheets) -> None:
    assert set(sheets[0]) == {f"{name}.png" for name in NAMES} and set(NAMES) <= set(CAPTIONS)
    for rows, columns, names in sheets[0].values():
        assert all(len(row) == len(columns) for row in rows) and len(names) in (0, len(rows))


def test_a_move_of_nothing_is_the_reconstruction(models: Models, sheets) -> None:
    plain, sources = _plain(models, 4), pick_inputs(models, 4).target
    for name, count in (("directions", 2), ("sections_traversal", models.model.sections), ("attributes", 2)):
        rows, columns, _ = sheets[0][f"{name}.png"]
        assert columns == ["source", "-2 sigma", "0", "+2 sigma"] and len(rows) == 4 * count
        for at, row in enumerate(rows):
            assert (row[0] == sources[at % 4]).all()
            _near(row[2], plain[at % 4])
            assert (row[1] != row[3]).any()


def test_moves_go_along_the_direction_of_greatest_variance(models: Models, sheets, tmp_path: Path) -> None:
    latents = context_of(models, tmp_path).features("train", None).arrays["trained"].astype(np.float64)
    _, singular, rows = np.linalg.svd(latents - latents.mean(0))
    direction, sigma = rows[0] * np.sign(rows[0, np.abs(rows[0]).argmax()]), singular[0] / np.sqrt(len(latents) - 1)
    assert sheets[1]["directions"][0]["sigma"] == pytest.approx(sigma, rel=1e-4)
    inputs = pick_inputs(models, 4)
    for column, k in ((1, -2.0), (3, 2.0)):
        z = (encode_inputs(models, inputs) + k * sigma * direction).astype(np.float32)
        drawn = decode_job(models, LatentJob(inputs.keys, z, None)).images
        _near([row[column] for row in sheets[0]["directions.png"][0][:4]], drawn)


def test_ends_of_interpolations_and_of_mixings_are_reconstructions(models: Models, sheets) -> None:
    inputs = pick_inputs(models, 4)
    z = encode_inputs(models, inputs)
    a, b = np.array([0, 0, 2, 2]), np.array([1, 1, 3, 3])
    first = decode_job(models, LatentJob(inputs.keys[a], z[a], None)).images
    last = decode_job(models, LatentJob(inputs.keys[a], z[b], None)).images
    for name in ("interpolation", "mixing"):
        rows, columns, _ = sheets[0][f"{name}.png"]
        for row, source, one, other, target in zip(rows, inputs.target[a], first, last, inputs.target[b], strict=True):
            assert (columns[0], columns[-1]) == ("A", "B") and (row[0] == source).all() and (row[-1] == target).all()
            _near(row[1], one)
            _near(row[-2], other)
    rows, columns, names = sheets[0]["interpolation.png"]
    assert columns == ["A", "0", "0.5", "1", "B"] and names == ["linear", "spherical"] * 2
    middle = (z[a] + z[b])[::2] / 2
    _near([row[2] for row in rows[::2]], decode_job(models, LatentJob(inputs.keys[a[::2]], middle, None)).images)
    assert any((rows[at][2] != rows[at + 1][2]).any() for at in (0, 2))


def test_sections_go_over_one_after_another(models: Models, sheets) -> None:
    inputs, of = pick_inputs(models, 4), section_of(models, None).numpy()
    z = encode_inputs(models, inputs)[:2]
    rows, _, names = sheets[0]["mixing.png"]
    assert names[:2] == ["outer first", "inner first"]
    for row, some in ((rows[0], of < 1), (rows[1], of >= models.model.sections - 1)):
        _near(row[2], decode_job(models, LatentJob(inputs.keys[:1], np.where(some, z[1:], z[:1]), None)).images[0])


def test_masked_rows_have_the_noises_and_resampled_ones_their_own_latent(models: Models, sheets) -> None:
    inputs, sections = pick_inputs(models, 4), models.model.sections
    z = encode_inputs(models, inputs)
    rows, columns, names = sheets[0]["masking.png"]
    assert columns == ["source", "noise 1", "noise 2"] and len(rows) == 2 * len(names[: len(rows) // 2])
    kinds = names[: len(rows) // 2]
    assert kinds == ["nothing", *(f"section {i}" for i in range(sections)), "outer half", "inner half", "all"]
    masks = {"nothing": (), "section 1": (1,), "outer half": (0, 1), "inner half": (2,), "all": (0, 1, 2)}
    for image in (0, 1):
        for kind, masked in masks.items():
            row = rows[image * len(kinds) + kinds.index(kind)]
            for noise in (0, 1):
                at = slice(image, image + 1)
                given = LatentJob(inputs.keys[at], z[at], None, masked=masked, noise=noise)
                _near(row[1 + noise], decode_job(models, given).images[0])
    rows, columns, _ = sheets[0]["resampled.png"]
    assert columns[:3] == ["source", "own latent", "section 0"]
    _near([row[1] for row in rows], _plain(models, 4))
    assert all(any((row[2 + i] != row[1]).any() for row in rows) for i in range(sections))


def test_the_result_says_what_was_done(sheets, models: Models) -> None:
    _, result, said = sheets
    assert result["counts"] == {"images": 4, "latents": 44, "train": 44} and result["measured_images"] == 3
    assert list(result["attributes"]) == ["bright", "late"] == list(result["sigmas"]) == list(result["of_sources"])
    assert len(result["directions"]) == 2 and len(result["sections"]) == models.model.sections
    for rows in result["attributes"].values():
        assert [row["k"] for row in rows] == [-2.0, 0.0, 2.0]
        assert rows[1]["change"] == {"value": 0.0, "standard_error": 0.0} and rows[1]["drift"]["value"] == 0
    assert "effects of attributes: 15 of 15 images" in said[-7] and said[-1].startswith("late, +2 sigma: log-odds")


def _figures(result: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name not in ("seconds", "provenance")}


class Painter(EncDec):
    """z is the image's mean brightness, times weights; an image of z has that brightness."""

    weights = torch.linspace(0.5, 1.5, 12)

    def encode(self, sources: Sources, pose_keep: Tensor | None = None) -> Tensor:
        return sources.images.mean((1, 2, 3, 4))[:, None] * self.weights

    def decode(self, condition: Condition) -> Tensor:
        grey = (condition.z / self.weights).mean(1) * 0.45 - 0.1  # about the inverse of the encoder's normalisation
        return grey[:, None, None, None].expand(-1, 3, 16, 16)


def test_the_effect_of_brightness_is_measured_on_the_images(small_set: Path, tmp_path: Path) -> None:
    config = config_of("encdec", evaluation={**EVALUATION, "tools": {**TOOLS, "ks": (-1.0, 1.0, 2.0)}})
    models = voiced(config, small_set)
    models.model.__class__ = Painter
    result = latents.draw_sheets(context_of(models, tmp_path))
    rows = result["attributes"]["bright"]
    assert [row["k"] for row in rows] == [-1.0, 0.0, 1.0, 2.0]
    scores = [row["score"]["value"] for row in rows]
    assert all(later > earlier + 0.3 for earlier, later in pairwise(scores))
    assert [row["change"]["value"] for row in rows] == pytest.approx([score - scores[1] for score in scores])
    probability = [row["probability"]["value"] for row in rows]
    assert probability == sorted(probability) and rows[0]["share"] < rows[3]["share"] == 1.0
    assert all(row["drift"]["value"] == pytest.approx(abs(row["others"]["late"]["value"])) for row in rows)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("soda", {}, None),
        ("encdec", {}, None),
        ("rays", {}, None),
        ("palette", {}, "latents of method palette; allowed: methods soda and encdec"),
        ("no bottleneck", {}, "denoiser.conditioning=grid_attention; allowed: runs whose z is one vector"),
        ("rays", {"sampling.sources": 2, "data.sources": (1, 2)}, "sampling.sources: got 2 with the task latents"),
        ("soda", {"evaluation.tools.directions": 13}, r"13 with 45 training images .*; allowed: 1\.\.12"),
        ("soda", {"evaluation.label": "shape"}, "evaluation.label: got shape; allowed: colour"),
    ],
)
def test_what_the_task_cannot_do_is_refused_in_one_line(
    name: str, fields: dict, message: str | None, small_set: Path, tmp_path: Path
) -> None:
    context = context_of(without_model(config_of(name), small_set), tmp_path, **fields)
    with pytest.raises(UserError, match=message) if message else nullcontext():
        latents.check(context)


def test_data_without_labels_has_no_attributes(models: Models, tmp_path: Path) -> None:
    said: list[str] = []
    context = context_of(models, tmp_path, said, **{"evaluation.label": None, "evaluation.tools.images": 2})
    context.manifest = context.manifest.model_copy(update={"labels": {}, "main_label": None})
    latents.check(context)
    result = latents.draw_sheets(context)
    assert "attributes" not in result and not context.place.exists("attributes.png")
    assert context.place.exists("directions.png")
    assert "attributes left out: the data has no main label and evaluation.label names none" in said


@pytest.fixture(scope="module")
def calls(small: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[dict, dict[str, bytes], list[str]]]:
    """(result, files of eval/6, what was said) of three calls on a run: attributes twice, then a class."""
    path = tmp_path_factory.mktemp("latents_of_a_run") / "run"
    shutil.copytree(small / "run", path)
    shutil.rmtree(path / "eval", ignore_errors=True)
    shutil.rmtree(path / "latents", ignore_errors=True)
    run, found = open_folder(str(path)), []
    tools = {"images": 2, "directions": 2, "weights": 3, "noises": 2, "measured_images": 3, "ks": "[-2.0,2.0]"}
    for label, pool in (("attributes", LocalPool()), ("attributes", ScatteredPool(2)), ("colour", LocalPool())):
        said: list[str] = []
        overrides = [
            f"evaluation.label={label}",
            *(f"evaluation.tools.{name}={value}" for name, value in tools.items()),
        ]
        result = evaluate(run.uri, str(small / "data"), "latents", pool, overrides=overrides, say=said.append)[
            "latents"
        ]
        assert run.read_json("eval/6/latents.json") == result
        found.append((result, {entry.name: run.read(entry.name) for entry in run.list("eval/6/")}, said))
    text = html.unescape(Path(write_report(run.uri)).read_text())
    assert all(CAPTIONS[name] in text for name in NAMES), "the page shows them"
    return found


def test_a_runs_pictures_and_figures_do_not_depend_on_the_pool(calls: list) -> None:
    (result, files, said), (again, others, _) = calls[:2]
    assert set(files) == {"eval/6/latents.json", *(f"eval/6/{name}.png" for name in NAMES)}
    pictures = [name for name in files if name.endswith(".png")]
    assert all(files[name].startswith(b"\x89PNG") and files[name] == others[name] for name in pictures)
    assert _figures(result) == _figures(again)
    assert result["counts"] == {"images": 2, "latents": 44, "train": 44} and result["measured_images"] == 3
    assert "effects of attributes: 15 of 15 images" in "\n".join(said)  # two attributes, two moves, and none
    assert list(result["attributes"]) == ["bright", "late"]
    for rows in result["attributes"].values():
        assert [row["k"] for row in rows] == [-2.0, 0.0, 2.0]
        scores = [row["score"]["value"] for row in rows]
        assert [row["change"]["value"] for row in rows] == pytest.approx([score - scores[1] for score in scores])
        assert rows[0]["change"]["value"] != 0 and rows[2]["change"]["value"] != 0, "moves are heard"


def test_a_second_call_encodes_nothing_again_and_a_class_has_a_direction_for_each_value(calls: list) -> None:
    cached = "latents of train: reusing 45 of 45 cached images"
    assert [cached in said for _, _, said in calls] == [False, True, True]
    result = calls[2][0]
    assert (result["label"], result["kind"]) == ("colour", "class")
    assert list(result["attributes"]) == ["red", "green", "blue"] == list(result["sigmas"])
    assert set(result["attributes"]["red"][0]["others"]) == {"green", "blue"}
    assert result["directions"] == calls[0][0]["directions"], "principal directions need no label"
