"""Denoisers read as encoders: where, and what is read; baselines are probed and drawn."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from soda_dist.data.storage.folder import open_folder
from soda_dist.errors import UserError
from soda_dist.evaluation.features.extraction import activations
from soda_dist.evaluation.features.read_point import candidates
from soda_dist.evaluation.pieces import Point
from soda_dist.evaluation.task_runner import evaluate
from soda_dist.evaluation.views import addressed_noise, central_views
from soda_dist.evaluation.worker import Models, readers
from soda_dist.models.condition import Condition
from soda_dist.training.build import build_model
from tests.evaluation.small_run import train
from tests.models.methods import METHODS, NO_MASKS, config_of
from tests.tiny import tiny_config

QUICK = {
    "batch": 8, "images": 3, "probe": {"epochs": 10, "batch": 16, "learning_rates": (1e-2,)},
    "activations": {"layers": ("down.0", "middle.1", "up.0"), "noise_levels": (0.02, 1.0), "search_images": 40},
}  # fmt: skip


@pytest.mark.parametrize("name", ["unconditional", "palette", "encdec"])
def test_a_baseline_is_probed_and_drawn(name: str, small: Path, tmp_path: Path) -> None:
    train(str(tmp_path), config_of(name, evaluation=QUICK, train={"steps": 1}))
    said: list[str] = []
    drawn = "samples" if name == "unconditional" else "reconstruction"
    found = evaluate(str(tmp_path), str(small / "data"), f"probe,{drawn}", say=said.append)
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
    assert Image.open(BytesIO(open_folder(str(tmp_path)).read(f"eval/1/{drawn}.png"))).size[0] > 100
    assert "novel_views" not in found


def test_candidates_are_layers_times_levels_and_unknown_layers_are_refused() -> None:
    config = tiny_config(evaluation={"activations": {"layers": ("up.1",), "noise_levels": (0.0, 1.0)}})
    assert candidates(config) == [Point("up.1", 0), Point("up.1", 49)]
    every = candidates(tiny_config(evaluation={"activations": {"noise_levels": (0.5,)}}))
    assert [point.layer for point in every] == build_model(tiny_config()).denoiser.layer_names()
    with pytest.raises(UserError, match=r"up\.9"):
        candidates(tiny_config(evaluation={"activations": {"layers": ("up.9",)}}))


def test_activations_are_the_networks_over_noise_that_belongs_to_the_key(small: Path) -> None:
    config = tiny_config(method="unconditional", denoiser=NO_MASKS)
    model = build_model(config).eval().requires_grad_(False)
    models = Models(model, config, readers(str(small / "data"), config), torch.device("cpu"))
    table = models.reader["test"].group(1, ["image"]).slice(0, 4)
    seen = central_views(table, config)
    points = (Point("up.0", 3), Point("middle.0", 20))
    found = activations(models, model, seen, np.arange(10, 14), points)
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


def test_every_method_is_named_here_or_is_soda() -> None:
    methods = {config_of(name).method for name in METHODS}
    assert methods == {"soda", "encdec", "unconditional", "palette"}
