"""SampleJob without Ray: noise is addressed, pictures show what they say, likeness is that of scikit-image."""

from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from soda_dist.data.views.pair_views import center_views
from soda_dist.diffusion.sampling import guided, sample
from soda_dist.errors import UserError
from soda_dist.evaluation.images import sampling
from soda_dist.evaluation.images.sampling import SampleJob, draw, pick_inputs, sample_all
from soda_dist.evaluation.images.scores import likeness
from soda_dist.evaluation.tasks.reconstruction import show
from soda_dist.evaluation.views import addressed_noise
from soda_dist.evaluation.worker import Models, readers
from soda_dist.models.condition import join
from soda_dist.models.pixels import to_uint8
from soda_dist.training.build import build_model
from tests.evaluation.features.test_extraction import LocalCrew, alone
from tests.evaluation.small_run import prepare, small_data
from tests.tiny import tiny_config


def _models(path, **sections) -> Models:
    config = tiny_config(**{"evaluation": {"images": 5}, "data": {"source_size": 20}, **sections})
    small_data(path)
    model = build_model(config).eval().requires_grad_(False)
    # Fresh weights ignore z: give it a voice.
    generator = torch.Generator().manual_seed(0)
    for parameter in model.denoiser.parameters():
        parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return Models(model, config, readers(str(path), config), torch.device("cpu"))


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Models:
    return _models(tmp_path_factory.mktemp("samples"))


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


def test_subjects_are_evenly_spaced_and_skip_what_cannot_be_read(models: Models) -> None:
    inputs = pick_inputs(models, 5)
    assert inputs.keys.tolist() == [1, 6, 12, 18, 24]
    reader = models.reader["test"]
    image = reader.group(1, ["image"]).column("image").to_pylist()[2]
    assert (inputs.source[2, 0] == center_views([image], size=20, resize=1.0)[0][0]).all()
    assert (inputs.target[2] == center_views([image], size=16, resize=1.0)[0][0]).all()
    assert pick_inputs(models, 1000).keys.tolist() == list(range(1, 30))


def test_a_split_without_a_readable_image_is_the_users_to_know(tmp_path) -> None:
    prepare(str(tmp_path), {"train": [[4]], "test": [[3]]}, {"test": {0, 1, 2}})
    config = tiny_config()
    blind = Models(build_model(config), config, readers(str(tmp_path), config), torch.device("cpu"))
    with pytest.raises(UserError, match="without a readable image"):
        pick_inputs(blind, 2)


@pytest.mark.parametrize("how", [{"method": "ddpm"}, {"method": "ddim", "eta": 0.0}], ids=["ddpm", "ddim"])
def test_a_drawing_is_the_sampler_on_the_encoded_source_with_addressed_noise(tmp_path, how: dict) -> None:
    models = _models(tmp_path, sampling={"steps": 4, **how})
    inputs = pick_inputs(models, 3)
    drawn = draw(models, SampleJob(inputs, 2.0, 1, 2))
    model, side = models.model, 16

    def noise(i: int) -> torch.Tensor:
        return addressed_noise(0, inputs.keys, 1, i, side)

    with torch.no_grad():
        sources = alone(torch.from_numpy(inputs.source[:, 0]))
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
    drawings = [SampleJob(inputs, 1.0, 0, 2), SampleJob(inputs, 2.0, 0, 0)]
    whole = sample_all(LocalCrew(models), drawings, lambda line: None)
    monkeypatch.setattr(sampling, "CHUNK", 3)
    for seed in (1, 2):
        parts = sample_all(LocalCrew(models, seed), drawings, lambda line: None)
        for one, other in zip(whole, parts, strict=True):
            assert np.abs(one.images.astype(int) - other.images).max() <= 1  # sums of another batch size
            assert one.times == other.times and other.states.shape == one.states.shape


def test_likeness_is_that_of_scikit_image_with_the_error_of_the_mean() -> None:
    rng = np.random.default_rng(0)
    target = rng.integers(0, 256, (6, 16, 16, 3), np.uint8)
    images = np.clip(target + rng.normal(0, [[[[5]]], [[[10]]], [[[20]]]] * 2, target.shape), 0, 255).astype(np.uint8)
    scores = likeness(images, target)
    psnrs = [peak_signal_noise_ratio(t, i) for t, i in zip(target, images, strict=True)]
    ssims = [structural_similarity(t, i, channel_axis=2) for t, i in zip(target, images, strict=True)]
    for name, values in (("psnr", psnrs), ("ssim", ssims)):
        assert scores[name]["value"] == pytest.approx(np.mean(values))
        assert scores[name]["standard_error"] == pytest.approx(np.std(values, ddof=1) / 6**0.5)
    assert likeness(images[:1], target[:1])["psnr"]["standard_error"] == 0.0


def test_the_grid_shows_targets_and_reconstructions(models: Models) -> None:
    pictures = show(LocalCrew(models), models.config, lambda line: None)
    inputs = pick_inputs(models, 5)
    plain = draw(models, SampleJob(inputs, 1.0, 0, 0)).images
    grid = np.asarray(Image.open(BytesIO(pictures["reconstruction.png"])).convert("RGB"))
    side, gap = 112, 6
    top, left = grid.shape[0] - 5 * (side + gap), grid.shape[1] - 6 * (side + gap)
    for row in range(5):
        y = top + row * (side + gap)
        for column, expected in enumerate((inputs.target, plain)):
            x = left + column * (side + gap)
            assert (grid[y : y + side : 7, x : x + side : 7] == expected[row]).all()
    assert Image.open(BytesIO(pictures["denoising.png"])).size[1] > 4 * side
