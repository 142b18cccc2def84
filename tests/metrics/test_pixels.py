"""PSNR and SSIM against scikit-image and closed forms."""

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from soda_dist.metrics.pixels import psnr, ssim


def _pair(size: int = 24, noise: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    reference = torch.rand(3, 3, size, size + 3, generator=generator)
    return (reference + noise * torch.randn(reference.shape, generator=generator)).clamp(0, 1), reference


def test_psnr_and_ssim_equal_scikit_image() -> None:
    images, reference = _pair()
    for index, (ours_psnr, ours_ssim) in enumerate(zip(psnr(images, reference), ssim(images, reference), strict=True)):
        one, other = images[index].double().numpy(), reference[index].double().numpy()
        assert float(ours_psnr) == pytest.approx(peak_signal_noise_ratio(other, one, data_range=1.0), rel=1e-9)
        assert float(ours_ssim) == pytest.approx(
            structural_similarity(one, other, data_range=1.0, channel_axis=0), rel=1e-9
        )


def test_equal_images_are_infinitely_alike() -> None:
    _, reference = _pair()
    assert torch.isinf(psnr(reference, reference)).all()
    torch.testing.assert_close(ssim(reference, reference), torch.ones(3, dtype=torch.float64))


def test_psnr_of_a_constant_error_is_the_closed_form() -> None:
    reference = torch.full((1, 3, 8, 8), 0.5)
    assert float(psnr(reference + 0.1, reference)) == pytest.approx(20.0, abs=1e-5)


def test_ssim_falls_with_noise_and_sees_contrast_inverted() -> None:
    images, reference = _pair(noise=0.05)
    worse, _ = _pair(noise=0.3)
    assert bool((ssim(images, reference) > ssim(worse, reference)).all())
    assert bool((ssim(1 - reference, reference) < 0).all())


def test_images_smaller_than_the_window_are_refused() -> None:
    with pytest.raises(ValueError, match="allowed: 7 or more"):
        ssim(torch.zeros(1, 3, 6, 9), torch.zeros(1, 3, 6, 9))
