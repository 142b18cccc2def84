"""Evaluation of what is not plain SODA: denoisers read as encoders, baselines' samples, objects from cameras."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from soda_dist.evaluation.evaluate import evaluate

from soda_dist.data.storage.folder import open_folder
from soda_dist.errors import UserError
from soda_dist.evaluation.features.extraction import activations
from soda_dist.evaluation.features.read_point import candidates
from soda_dist.evaluation.images.scores import likeness
from soda_dist.evaluation.pieces import Point
from soda_dist.evaluation.tasks.novel_views import pick_objects, show_novel_views
from soda_dist.evaluation.views import addressed_noise, central_views
from soda_dist.evaluation.worker import Models, readers
from soda_dist.models.condition import Condition
from soda_dist.training.build import build_model
from tests.evaluation.features.test_extraction import LocalCrew
from tests.evaluation.small_run import small_data, train
from tests.learn.scenes import write_scenes
from tests.models.methods import METHODS, NO_MASKS, config_of
from tests.tiny import tiny_config

QUICK = {
    "batch": 8, "images": 3, "probe": {"epochs": 40, "batch": 16, "learning_rates": (1e-2,)},
    "activations": {"layers": ("down.0", "middle.1", "up.0"), "noise_levels": (0.02, 1.0), "search_images": 40},
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("methods")
    small_data(path)
    return path


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("scenes")
    write_scenes(path, objects=6, test_objects=4, views=5, size=20)
    return path


@pytest.mark.ray
@pytest.mark.parametrize("name", ["unconditional", "palette", "encdec"])
def test_a_baseline_is_probed_and_drawn(cluster: None, name, data, tmp_path) -> None:
    train(str(tmp_path), config_of(name, evaluation=QUICK, train={"steps": 3}))
    said: list[str] = []
    drawn = "samples" if name == "unconditional" else "reconstruction"
    found = evaluate(str(tmp_path), str(data), f"probe,{drawn}", "latest", [], said.append)
    probe = found["probe"]
    assert probe["counts"]["train"] == 44 and 0.3 < probe["encoders"]["pixels"]["estimates"]["top1"]["value"] <= 1
    if name == "encdec":
        assert "read_at" not in probe and probe["encoders"]["trained"]["dimension"] == 12
        assert list(found["reconstruction"]["guidance"]) == ["1"]
    else:
        search = probe["search"]
        assert set(search) == {f"{layer} at t = {t}" for layer in ("down.0", "middle.1", "up.0") for t in (2, 50)}
        assert search[probe["read_at"]] == max(search.values()), "the best of the search is what is read"
        assert probe["encoders"]["trained"]["dimension"] == (8 if "down.0" in probe["read_at"] else 16)
        assert any(line.startswith("latents are ") for line in said)
    assert Image.open(BytesIO(open_folder(str(tmp_path)).read(f"eval/3/{drawn}.png"))).size[0] > 100
    assert "novel_views" not in found


def test_candidates_are_layers_times_levels_and_unknown_layers_are_refused() -> None:
    config = tiny_config(evaluation={"activations": {"layers": ("up.1",), "noise_levels": (0.0, 1.0)}})
    assert candidates(config) == [Point("up.1", 0), Point("up.1", 49)]
    every = candidates(tiny_config(evaluation={"activations": {"noise_levels": (0.5,)}}))
    assert [point.layer for point in every] == build_model(tiny_config()).denoiser.layer_names()
    with pytest.raises(UserError, match=r"up\.9"):
        candidates(tiny_config(evaluation={"activations": {"layers": ("up.9",)}}))


def test_activations_are_the_networks_over_noise_that_belongs_to_the_key(data) -> None:
    config = tiny_config(method="unconditional", denoiser=NO_MASKS)
    model = build_model(config).eval().requires_grad_(False)
    models = Models(model, config, readers(str(data), config), torch.device("cpu"))
    table = models.reader["test"].group(1, ["image"]).slice(0, 4)
    seen = central_views(table, config)
    points = (Point("up.0", 3), Point("middle.0", 20))
    found = activations(models, model, seen, 10, points)
    x0 = torch.from_numpy(seen.target).permute(0, 3, 1, 2).float() / 127.5 - 1
    for point in points:
        eps = addressed_noise(0, np.arange(10, 14), point.t, 0, 16)
        abar = model.process.abar[point.t].item()
        taken = {}
        model.denoiser(
            (abar**0.5 * x0 + (1 - abar) ** 0.5 * eps),
            torch.full((4,), point.t),
            Condition(),
            tap=lambda name, h, taken=taken: taken.__setitem__(name, h),
        )
        torch.testing.assert_close(found[point], taken[point.layer].mean((2, 3)), rtol=1e-4, atol=1e-5)


def _models(scenes: Path, **more) -> Models:
    config = config_of("rays", evaluation={"images": 3}, **more)
    return Models(build_model(config).eval(), config, readers(str(scenes), config), torch.device("cpu"))


@pytest.mark.parametrize("given", [1, 2])
def test_objects_are_shown_from_the_cameras_of_their_other_views(given, scenes) -> None:
    models = _models(scenes, data={"sources": (1, 3)}, sampling={"sources": given})
    inputs, counts = pick_objects(models, 3)
    assert counts == [5 - given] * 3 and len(inputs.keys) == sum(counts)
    reader = models.reader["test"]
    table = reader.group(0, ["image", "object", "camera_to_world", "intrinsics"])
    owner = table.column("object").to_pylist()
    places = np.array(table.column("camera_to_world").to_pylist()).reshape(-1, 4, 4)[:, :3, 3]
    for row, key in enumerate(inputs.keys.tolist()):
        first = owner.index(owner[key])
        assert key - first >= given, "what is asked for was not given"
        np.testing.assert_allclose(inputs.pose[row, 3:12:4], places[key], rtol=1e-5)
        np.testing.assert_allclose(inputs.source_pose[row][:, 3:12:4], places[first : first + given], rtol=1e-5)
    assert len({owner[key] for key in inputs.keys.tolist()}) == 3


def test_novel_views_are_measured_against_the_nearest_source_and_the_mean_image(scenes) -> None:
    models = _models(scenes, sampling={"steps": 2, "sources": 1})
    facts, pictures = show_novel_views(LocalCrew(models), models.config, lambda line: None)
    inputs, _ = pick_objects(models, 3)
    mean = np.round(inputs.target.astype(float).mean(0)).astype(np.uint8)
    assert facts["mean_image"] == likeness(np.stack([mean] * len(inputs.keys)), inputs.target)
    assert facts["nearest_source"]["psnr"]["value"] > facts["model"]["psnr"]["value"], "an untrained model is worse"
    assert facts["objects"] == 3 and facts["views"] == 12
    width, height = Image.open(BytesIO(pictures["novel_views.png"])).size
    assert width > 5 * 100 and height > 6 * 100


def test_a_split_without_enough_views_is_the_users_to_know(scenes) -> None:
    with pytest.raises(UserError, match="more than 5 views"):
        pick_objects(_models(scenes, data={"sources": (1, 5)}, sampling={"sources": 5}), 3)


def test_every_method_is_named_here_or_is_soda() -> None:
    methods = {config_of(name).method for name in METHODS}
    assert methods == {"soda", "encdec", "unconditional", "palette"}
