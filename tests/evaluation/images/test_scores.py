"""Scores of images are those of scikit-image, and PNGs lose nothing."""

import numpy as np
import pyarrow as pa
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from soda_dist.evaluation.images.scores import ROUNDING_PSNR, images_of, likeness, png


def test_a_png_gives_back_the_image() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 9, 11, 3), np.uint8)
    assert (images_of(pa.chunked_array([[png(image) for image in images]])) == images).all()


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


def test_an_exactly_reproduced_image_leaves_the_mean_finite() -> None:
    """Its PSNR is that of rounding to 8 bits, measured here on random values; the median and the mean error beside."""
    rng = np.random.default_rng(0)
    exact = rng.uniform(0, 255, 100_000)
    rounding = -10 * np.log10((((exact - exact.round()) / 255) ** 2).mean())
    assert pytest.approx(rounding, abs=0.05) == ROUNDING_PSNR

    target = rng.integers(10, 240, (5, 16, 16, 3), np.uint8)
    images = target.copy()
    images[1:] += np.array([10, 10, 10, 5], np.uint8)[:, None, None, None]
    far, near = (20 * np.log10(255 / error) for error in (10, 5))
    scores = likeness(images, target)["psnr"]
    assert scores["value"] == pytest.approx((ROUNDING_PSNR + 3 * far + near) / 5)
    assert scores["median"] == pytest.approx(far)
    error = ((1 / 12) + 3 * 10**2 + 5**2) / 5 / 255**2
    assert scores["of_mean_error"] == pytest.approx(-10 * np.log10(error))


def test_one_value_off_by_one_level_is_no_more_than_exact() -> None:
    target = np.full((2, 16, 16, 3), 100, np.uint8)
    images = target.copy()
    images[0, 0, 0, 0] = 101
    assert likeness(images, target)["psnr"]["value"] == pytest.approx(ROUNDING_PSNR)
