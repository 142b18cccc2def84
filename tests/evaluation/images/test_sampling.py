"""Sampling by workers: noise is addressed, a job is the sampler itself, and pieces are joined in order."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from soda_dist.data.views.pair_views import center_views
from soda_dist.diffusion.sampling import guided, sample
from soda_dist.errors import UserError
from soda_dist.evaluation.images import sampling
from soda_dist.evaluation.images.sampling import SampleJob, draw, pick_inputs, sample_all
from soda_dist.evaluation.rows import drawn_order
from soda_dist.evaluation.views import addressed_noise
from soda_dist.evaluation.worker import Models
from soda_dist.models.condition import Sources, join
from soda_dist.models.pixels import source_input, to_uint8
from soda_dist.parallel.pool import Held
from soda_dist.parallel.progress import silent
from tests.evaluation.contexts import voiced, without_model
from tests.evaluation.scattered_pool import ScatteredPool
from tests.evaluation.small_run import prepare
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def models(small_set: Path) -> Models:
    return voiced(tiny_config(data={"source_size": 20}), small_set)


def test_noise_is_a_function_of_seed_key_number_and_step_alone() -> None:
    keys = np.array([3, 8, 5])
    noise = addressed_noise(0, keys, 0, 0, 16)
    assert torch.equal(addressed_noise(0, keys[[2, 0]], 0, 0, 16), noise[[2, 0]])
    others = [
        addressed_noise(1, keys, 0, 0, 16),
        addressed_noise(0, keys, 1, 0, 16),
        addressed_noise(0, keys, 0, 1, 16),
    ]
    seen = [noise[0], noise[1], *(other[0] for other in others)]
    for i, one in enumerate(seen):
        for other in seen[:i]:
            assert abs(np.corrcoef(one.flatten(), other.flatten())[0, 1]) < 0.15
    wide = addressed_noise(0, np.arange(50), 0, 0, 16)
    assert abs(float(wide.mean())) < 0.02 and abs(float(wide.std()) - 1) < 0.02


def test_subjects_are_drawn_over_the_split_and_skip_what_cannot_be_read(models: Models) -> None:
    order = [key for key in drawn_order(30, models.config.seed, "test").tolist() if key != 0]
    inputs = pick_inputs(models, 5)
    assert inputs.keys.tolist() == sorted(order[:5])
    reader = models.reader["test"]
    images = [image for group in range(3) for image in reader.group(group, ["image"]).column("image").to_pylist()]
    for row, key in enumerate(inputs.keys.tolist()):
        assert (inputs.source[row, 0] == center_views([images[key]], size=20, resize=1.0)[0][0]).all()
        assert (inputs.target[row] == center_views([images[key]], size=16, resize=1.0)[0][0]).all()
    assert pick_inputs(models, 1000).keys.tolist() == list(range(1, 30))


def test_a_split_without_a_readable_image_is_the_users_to_know(tmp_path: Path) -> None:
    prepare(str(tmp_path), {"train": [[4]], "test": [[3]]}, {"test": {0, 1, 2}})
    blind = without_model(tiny_config(), tmp_path)
    with pytest.raises(UserError, match="without a readable image"):
        pick_inputs(blind, 2)


@pytest.mark.parametrize("how", [{"method": "ddpm"}, {"method": "ddim", "eta": 0.0}], ids=["ddpm", "ddim"])
def test_a_drawing_is_the_sampler_on_the_encoded_source_with_addressed_noise(small_set: Path, how: dict) -> None:
    models = voiced(tiny_config(data={"source_size": 20}, sampling={"steps": 4, **how}), small_set)
    inputs = pick_inputs(models, 3)
    drawn = draw(models, SampleJob(inputs, 2.0, 1, 2))
    model, side = models.model, 16

    def noise(i: int) -> torch.Tensor:
        return addressed_noise(0, inputs.keys, 1, i, side)

    with torch.no_grad():
        images = source_input(torch.from_numpy(inputs.source[:, 0]))[:, None]
        sources = Sources(images, torch.ones(3, 1, dtype=torch.bool), None)
        condition = model.condition(sources, None, None, None)
        without = condition._replace(z=torch.zeros_like(condition.z))
        expected = sample(
            guided(model.denoise, condition, without, 2.0, join=join),
            model.process,
            noise(0),
            method=models.config.sampling.method,
            steps=4,
            variance="small",
            eta=0.0,
            clip=True,
            noise=lambda i: noise(i + 1),
        )
    assert (drawn.images == to_uint8(expected).numpy()).all()
    assert drawn.times == (50, 34, 17, 1)
    assert (drawn.states[:, 0] == to_uint8(noise(0)[:2]).numpy()).all()
    assert (drawn.predictions[:, -1] == drawn.images[:2]).all(), "the last step takes the prediction as it is"


def test_the_latent_and_the_guidance_matter_and_no_latent_ignores_the_source(models: Models) -> None:
    inputs = pick_inputs(models, 4)
    swapped = replace(inputs, source=inputs.source[::-1].copy())
    plain, strong, free = (draw(models, SampleJob(inputs, w, 0, 0)).images for w in (1.0, 3.0, 0.0))
    assert (plain != strong).any()
    assert (draw(models, SampleJob(swapped, 1.0, 0, 0)).images != plain).any()
    assert (draw(models, SampleJob(swapped, 0.0, 0, 0)).images == free).all()


def test_pieces_are_put_together_in_the_order_of_subjects(models: Models, monkeypatch) -> None:
    inputs = pick_inputs(models, 7)
    jobs = [SampleJob(inputs, 1.0, 0, 2), SampleJob(inputs, 2.0, 0, 0)]
    whole = sample_all(ScatteredPool(0, Held(models)), jobs, silent)
    monkeypatch.setattr(sampling, "CHUNK", 3)
    for seed in (1, 2):
        parts = sample_all(ScatteredPool(seed, Held(models)), jobs, silent)
        for one, other in zip(whole, parts, strict=True):
            assert np.abs(one.images.astype(int) - other.images).max() <= 1  # sums of another batch size
            assert one.times == other.times and other.states.shape == one.states.shape
