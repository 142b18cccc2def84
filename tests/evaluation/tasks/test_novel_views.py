"""Objects as their other cameras see them: which views are asked for, and what they are measured against."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from soda_dist.errors import UserError
from soda_dist.evaluation.images.generated_sets import view_order
from soda_dist.evaluation.images.scores import likeness
from soda_dist.evaluation.tasks.novel_views import pick_objects, show_novel_views
from soda_dist.evaluation.worker import Models, readers
from soda_dist.parallel.pool import Held
from soda_dist.parallel.progress import silent
from soda_dist.training.build import build_model
from tests.evaluation.scattered_pool import ScatteredPool
from tests.models.methods import config_of


def _models(solids: Path, **more: dict) -> Models:
    config = config_of("rays", evaluation={"images": 3}, **more)
    return Models(build_model(config).eval(), config, readers(str(solids), config), torch.device("cpu"))


@pytest.mark.parametrize("given", [1, 2])
def test_objects_are_shown_from_the_cameras_of_their_other_views(given: int, solids: Path) -> None:
    models = _models(solids, data={"sources": (1, 3)}, sampling={"sources": given})
    inputs, counts = pick_objects(models, 3)
    assert counts == [6 - given] * 3 and len(inputs.keys) == sum(counts)
    reader = models.reader["test"]
    table = reader.group(0, ["image", "object", "camera_to_world", "intrinsics"])
    owner = table.column("object").to_pylist()
    places = np.array(table.column("camera_to_world").to_pylist()).reshape(-1, 4, 4)[:, :3, 3]
    for row, key in enumerate(inputs.keys.tolist()):
        first = owner.index(owner[key])
        sources = view_order(models.config, "test", first, first + 6)[:given]
        assert key not in sources and owner[sources[-1]] == owner[key], "what is asked for was not given"
        np.testing.assert_allclose(inputs.pose[row, 3:12:4], places[key], rtol=1e-5)
        np.testing.assert_allclose(inputs.source_pose[row][:, 3:12:4], places[sources], rtol=1e-5)
    assert len({owner[key] for key in inputs.keys.tolist()}) == 3


def test_novel_views_are_measured_against_the_nearest_source_and_the_mean_image(solids: Path) -> None:
    models = _models(solids, sampling={"steps": 2, "sources": 1})
    facts, pictures = show_novel_views(ScatteredPool(0, Held(models)), models.config, silent)
    inputs, _ = pick_objects(models, 3)
    mean = np.round(inputs.target.astype(float).mean(0)).astype(np.uint8)
    assert facts["mean_image"] == likeness(np.stack([mean] * len(inputs.keys)), inputs.target)
    assert facts["nearest_source"]["psnr"]["value"] > facts["model"]["psnr"]["value"], "an untrained model is worse"
    assert facts["objects"] == 3 and facts["views"] == 15
    width, height = Image.open(BytesIO(pictures["novel_views.png"])).size
    assert width > 5 * 100 and height > 6 * 100


def test_a_split_without_enough_views_is_the_users_to_know(solids: Path) -> None:
    with pytest.raises(UserError, match="more than 6 views"):
        pick_objects(_models(solids, data={"sources": (1, 6)}, sampling={"sources": 6}), 3)
