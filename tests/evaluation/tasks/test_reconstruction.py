"""The task reconstruction: which ways of sampling it goes through, what it says of each, and what it shows."""

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from soda_dist.config.load import with_fields
from soda_dist.errors import UserError
from soda_dist.evaluation.context import Context
from soda_dist.evaluation.images.generated_sets import ImageSet, folder_of, load_set, plan_images
from soda_dist.evaluation.images.sampling import SampleJob, draw, pick_inputs
from soda_dist.evaluation.images.scores import images_of
from soda_dist.evaluation.tasks import reconstruction as task
from soda_dist.parallel.pool import Held
from soda_dist.parallel.progress import silent
from tests.evaluation.contexts import context_of, voiced
from tests.evaluation.images.colours import FACTS, slow_fid, stand_in
from tests.evaluation.scattered_pool import ScatteredPool
from tests.models.methods import config_of
from tests.tiny import tiny_config

FIELDS = {
    "evaluation.images": 2, "evaluation.reconstruction.images": 30,
    "evaluation.reconstruction.guidance": [0.5, 2.0, 2.0], "evaluation.reconstruction.steps": [2, 3, 2],
}  # fmt: skip


def _context(name: str, data: Path, run: Path, **fields: object) -> Context:
    """A run whose weights hear z, sampled at guidance 2 in 3 steps."""
    config = with_fields(config_of(name, sampling={"steps": 3}), {**FIELDS, **fields})
    return context_of(voiced(config, data), run)


def test_each_way_is_scored_once_and_the_runs_own_comes_first(small_set: Path, tmp_path: Path) -> None:
    context = _context("soda", small_set, tmp_path)
    result = task.reconstruct(context)
    assert [(row["guidance"], row["steps"]) for row in result["sweep"]] == [(2.0, 3), (0.5, 3), (2.0, 2)]
    assert list(result["guidance"]) == ["2", "0.5"], "at the run's number of steps"
    assert result["guidance"]["0.5"] == result["sweep"][1] and result["value"] == result["sweep"][0]["psnr"]["value"]
    assert len({row["psnr"]["value"] for row in result["sweep"]}) == 3
    assert all(row["counts"] == {"images": 29, "unreadable": 1} for row in [*result["sweep"], result])
    assert result["inception"] is None and result["lpips"] is None
    assert "fid" not in result["sweep"][0] and "lpips" not in result["sweep"][0]
    assert context.place.exists("sweep.png") and context.place.read_json("reconstruction.json") == result


def test_each_way_has_its_fid_where_inceptions_weights_are_named(
    small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch)
    context = _context("soda", small_set, tmp_path, **{"evaluation.inception.weights": "/nowhere/a.pth"})
    result = task.reconstruct(context)
    for row in result["sweep"]:
        how = context.config.sampling.model_copy(update={"guidance": row["guidance"], "steps": row["steps"]})
        pieces = plan_images(context, ImageSet("reconstruction", "test", how), 30)
        table = load_set(folder_of(context, pieces[0].image_set), pieces, ["image", "target"])
        expected = slow_fid(*(images_of(table.column(side)) for side in ("image", "target")))
        assert row["fid"] == {"value": pytest.approx(expected, rel=1e-6), "standard_error": None}
    assert len({row["fid"]["value"] for row in result["sweep"]}) == 3 and result["inception"] == FACTS
    with pytest.raises(UserError, match=r"evaluation\.inception\.weights: got /nowhere/a.pth"):
        task.check(context)


def test_a_decoder_draws_at_once_and_has_one_way(small_set: Path, tmp_path: Path) -> None:
    context = _context("encdec", small_set, tmp_path)
    result = task.reconstruct(context)
    assert list(result["guidance"]) == ["1"] and len(result["sweep"]) == 1
    assert not context.place.exists("sweep.png") and context.place.exists("reconstruction.png")


def test_what_has_no_source_is_not_reconstructed(small_set: Path, tmp_path: Path) -> None:
    context = _context("unconditional", small_set, tmp_path)
    with pytest.raises(UserError, match=r"reconstruction of an unconditional run; allowed: samples, fid"):
        task.check(context)
    for name in ("palette", "encdec"):
        other = replace(context, config=config_of(name))
        with pytest.raises(UserError, match=f"samples of method {name}"):
            task.check_samples(other)
        task.check(other)
    task.check_samples(context)


def test_the_grid_shows_targets_and_reconstructions(small_set: Path) -> None:
    models = voiced(tiny_config(evaluation={"images": 5}), small_set)
    pictures = task.show(ScatteredPool(0, Held(models)), models.config, silent)
    inputs = pick_inputs(models, 5)
    plain = draw(models, SampleJob(inputs, 1.0, 0, 0)).images
    other = draw(models, SampleJob(inputs, models.config.sampling.guidance, 1, 0)).images
    grid = np.asarray(Image.open(BytesIO(pictures["reconstruction.png"])).convert("RGB"))
    side, gap = 112, 6
    top, left = grid.shape[0] - 5 * (side + gap), grid.shape[1] - 6 * (side + gap)
    for row in range(5):
        y = top + row * (side + gap)
        for column, expected in ((0, inputs.target), (1, plain), (4, other)):
            x = left + column * (side + gap)
            assert (grid[y : y + side : 7, x : x + side : 7] == expected[row]).all()
    assert Image.open(BytesIO(pictures["denoising.png"])).size[1] // (side + gap) == 2 * task.STRIP_IMAGES < 2 * 5
