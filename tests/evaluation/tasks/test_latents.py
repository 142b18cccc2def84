"""The latent tools: what the pictures show is what z says, and effects are those of the images."""

from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from soda_dist.config.load import with_fields
from soda_dist.config.schema import RunConfig
from soda_dist.data.storage.folder import open_folder
from soda_dist.errors import UserError
from soda_dist.evaluation.context import Subject
from soda_dist.evaluation.features.attributes import effects, log_odds
from soda_dist.evaluation.images.decode_latents import LatentJob, decode_job, encode_inputs, section_of
from soda_dist.evaluation.images.sampling import SampleJob, draw, pick_inputs
from soda_dist.evaluation.tasks import latents
from soda_dist.evaluation.worker import Models, readers
from soda_dist.metrics.probe import LinearProbe
from soda_dist.models.condition import Condition, Sources
from soda_dist.models.soda import EncDec
from soda_dist.report.page import PICTURES
from soda_dist.training.build import build_model
from tests.evaluation.features.test_extraction import LocalCrew
from tests.evaluation.images.test_generated_sets import subject_of
from tests.evaluation.small_run import small_data
from tests.learn.scenes import write_scenes
from tests.models.methods import config_of
from tests.tiny import tiny_config

TOOLS = {"directions": 2, "weights": 3, "noises": 2, "attributes": 3, "measured_images": 3, "ks": (-2.0, 0.0, 2.0)}
EVALUATION = {"batch": 16, "label": "attributes", "probe": {"epochs": 20, "batch": 16}, "tools": TOOLS}


def _voiced(config: RunConfig, data: Path) -> Models:
    """Fresh weights ignore z: these hear it."""
    model = build_model(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return Models(model, config, readers(str(data), config), torch.device("cpu"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("latent_tools")
    small_data(path)
    return path


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("latent_scenes")
    write_scenes(path, objects=4, test_objects=3, views=3, size=16)
    return path


@pytest.fixture(scope="module")
def models(data: Path) -> Models:
    return _voiced(tiny_config(data={"source_size": 20}, evaluation=EVALUATION), data)


def _subject(models: Models, path: Path, said: list[str], seed: int = 0, **fields: object) -> Subject:
    config = with_fields(models.config, fields)
    crew = LocalCrew(replace(models, config=config), seed)
    return subject_of(models, open_folder(str(path)), config, crew, said)


def _plain(models: Models, count: int, noise: int = 0) -> np.ndarray:
    return draw(models, SampleJob(pick_inputs(models, count), models.config.sampling.guidance, noise, 0)).images


def _near(one, other) -> None:
    """Of equal images but for the last rounding."""
    assert np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 1


@pytest.mark.parametrize(
    ("name", "sampling"),
    [
        ("soda", {}),
        ("soda", {"guided_sections": (0,), "method": "ddim"}),
        ("soda", {"masked_sections": (1,)}),
        ("no layer modulation", {"guidance": 1.0}),
        ("encdec", {}),
        ("rays and a vector", {"guide": "both"}),
        ("rays", {}),
    ],
)
def test_a_given_latent_is_drawn_as_its_source_is(name: str, sampling: dict, data: Path, scenes: Path) -> None:
    posed = name.startswith("rays")
    models = _voiced(config_of(name, sampling=sampling), scenes if posed else data)
    inputs = pick_inputs(models, 3)
    z = encode_inputs(models, inputs)
    given = LatentJob(inputs.keys, z, inputs.pose, noise=1, encode=True)
    found = decode_job(models, given)
    _near(found.images, _plain(models, 3, noise=1))
    seen = encode_inputs(models, replace(inputs, source=found.images[:, None]))
    np.testing.assert_allclose(found.z, seen, rtol=1e-4, atol=1e-5)
    other = decode_job(models, replace(given, z=z[::-1].copy())).images
    assert np.abs(other.astype(int) - found.images).max() > 1, "z is heard"
    if posed:
        other = decode_job(models, replace(given, pose=inputs.pose[::-1].copy())).images
        assert np.abs(other.astype(int) - found.images).max() > 1, "the pose is heard"


def test_a_masked_section_of_z_is_not_heard(models: Models) -> None:
    inputs = pick_inputs(models, 2)
    given = LatentJob(inputs.keys, encode_inputs(models, inputs), None)
    other = (given.z + 3.0 * (section_of(models, None).numpy() == 1)).astype(np.float32)
    assert (decode_job(models, replace(given, masked=(1,))).images
            == decode_job(models, replace(given, z=other, masked=(1,))).images).all()  # fmt: skip
    for masked in ((), (0,)):
        pair = [decode_job(models, replace(given, z=z, masked=masked)).images for z in (given.z, other)]
        assert (pair[0] != pair[1]).any()


@pytest.fixture(scope="module")
def sheets(models: Models, tmp_path_factory) -> tuple[dict[str, tuple], dict, list[str]]:
    """(rows, columns, names) of each picture, what the JSON holds, and what was said."""
    shown: list[tuple] = []

    def grid(rows, columns, names=()) -> bytes:
        shown.append((rows, columns, names))
        return str(len(shown) - 1).encode()

    said: list[str] = []
    subject = _subject(models, tmp_path_factory.mktemp("sheets"), said)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latents, "image_grid", grid)
        result = latents.draw_sheets(subject)
    assert subject.place.read_json("latents.json") == result
    names = [entry.name for entry in subject.place.list() if entry.name.endswith(".png")]
    return {name: shown[int(subject.place.read(name))] for name in names}, result, said


def test_every_picture_is_there_and_known_to_the_report(sheets) -> None:
    pictures = {"interpolation", "directions", "sections_traversal", "mixing", "resampled", "masking", "attributes"}
    assert set(sheets[0]) == {f"{name}.png" for name in pictures} and set(sheets[0]) <= set(PICTURES)
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
    latents = _subject(models, tmp_path, []).features("train", None).arrays["trained"].astype(np.float64)
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
        for row, source, one, other, target in zip(
            rows, inputs.target[a], first, last, inputs.target[b], strict=True
        ):
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


def test_the_order_in_which_pieces_are_done_decides_nothing(models: Models, tmp_path: Path) -> None:
    found = []
    for seed in (1, 2):
        subject = _subject(models, tmp_path / str(seed), [], seed, **{"evaluation.tools.images": 2})
        result = latents.draw_sheets(subject)
        pictures = {e.name: subject.place.read(e.name) for e in subject.place.list() if e.name.endswith(".png")}
        found.append(({k: v for k, v in result.items() if k not in ("seconds", "provenance")}, pictures))
    assert found[0] == found[1] and len(found[0][1]) == 7


class Painter(EncDec):
    """z is the image's mean brightness, times weights; an image of z has that brightness."""

    weights = torch.linspace(0.5, 1.5, 12)

    def encode(self, sources: Sources, pose_keep: Tensor | None = None) -> Tensor:
        return sources.images.mean((1, 2, 3, 4))[:, None] * self.weights

    def decode(self, condition: Condition) -> Tensor:
        grey = (condition.z / self.weights).mean(1) * 0.45 - 0.1  # about the inverse of the encoder's normalisation
        return grey[:, None, None, None].expand(-1, 3, 16, 16)


def test_the_effect_of_brightness_is_measured_on_the_images(data: Path, tmp_path: Path) -> None:
    config = config_of("encdec", evaluation={**EVALUATION, "tools": {**TOOLS, "ks": (-1.0, 1.0, 2.0)}})
    models = _voiced(config, data)
    models.model.__class__ = Painter
    result = latents.draw_sheets(_subject(models, tmp_path, []))
    rows = result["attributes"]["bright"]
    assert [row["k"] for row in rows] == [-1.0, 0.0, 1.0, 2.0]
    scores = [row["score"]["value"] for row in rows]
    assert all(later > earlier + 0.3 for earlier, later in pairwise(scores))
    assert [row["change"]["value"] for row in rows] == pytest.approx([score - scores[1] for score in scores])
    probability = [row["probability"]["value"] for row in rows]
    assert probability == sorted(probability) and rows[0]["share"] < rows[3]["share"] == 1.0
    assert all(row["drift"]["value"] == pytest.approx(abs(row["others"]["late"]["value"])) for row in rows)


@pytest.mark.parametrize("heads", [0, 3])
def test_log_odds_are_those_of_the_softmax(heads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    outputs, width = (6, 5) if heads else (4, 5)
    probe = LinearProbe(
        torch.zeros(width), torch.ones(width), torch.randn(outputs, width, generator=generator),
        torch.randn(outputs, generator=generator), heads, 0.1, {},
    )  # fmt: skip
    latents = torch.randn(7, width, generator=generator)
    p = probe.predict(latents).double().softmax(-1)
    p = p[:, :2, 1] if heads else p[:, :2]
    np.testing.assert_allclose(log_odds(probe, latents.numpy(), 2), torch.log(p / (1 - p)).numpy(), rtol=1e-5)


def test_effects_are_means_over_images_with_paired_changes() -> None:
    before = np.array([[0.0, 1.0, 5.0], [2.0, 1.0, 5.0]])
    after = np.array([[1.0, 2.0, 5.0], [5.0, 0.0, 9.0]])
    (row,) = effects(["a", "b", "c"], 0, before, {1.5: after})
    assert row["k"] == 1.5 and row["share"] == 1.0
    assert row["score"] == pytest.approx({"value": 3.0, "standard_error": 2.0})
    assert row["change"] == pytest.approx({"value": 2.0, "standard_error": 1.0})
    assert row["others"]["b"] == pytest.approx({"value": 0.0, "standard_error": 1.0})
    assert row["drift"] == pytest.approx({"value": 1.5, "standard_error": 1.0})
    assert row["probability"]["value"] == pytest.approx((1 / (1 + np.exp(-1)) + 1 / (1 + np.exp(-5))) / 2)
    assert effects(["a"], 0, before[:, :1], {1.0: after[:, :1]})[0]["drift"] is None


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
    name: str, fields: dict, message: str | None, data: Path, tmp_path: Path
) -> None:
    models = Models(torch.nn.Module(), config_of(name), readers(str(data), config_of(name)), torch.device("cpu"))
    with pytest.raises(UserError, match=message) if message else nullcontext():
        latents.check(_subject(models, tmp_path, [], **fields))


def test_data_without_labels_has_no_attributes(models: Models, tmp_path: Path) -> None:
    said: list[str] = []
    subject = _subject(models, tmp_path, said, **{"evaluation.label": None, "evaluation.tools.images": 2})
    subject.manifest = subject.manifest.model_copy(update={"labels": {}, "main_label": None})
    latents.check(subject)
    result = latents.draw_sheets(subject)
    assert "attributes" not in result and not subject.place.exists("attributes.png")
    assert subject.place.exists("directions.png")
    assert "attributes were left out: the data has no main label, and evaluation.label names none" in said
