"""Scores of images are those of scikit-image, and PNGs lose nothing."""

import numpy as np
import pyarrow as pa
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from soda_dist.evaluation.images.scores import images_of, likeness, png


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
