"""Similarity of two images by pixels (PSNR) and by windows (SSIM) (section E.2)."""

import torch
from torch import Tensor
from torch.nn import functional as F

WINDOW = 7


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Compute the peak signal-to-noise ratio in dB (section E.2): -10 log10 of the mean squared error, on [0, 1].

    Takes [B, C, h, w] float in [0, 1]; returns float64 [B], infinite for equal images.
    """
    error = (images.double() - reference.double()).square().flatten(1).mean(dim=1)
    return -10.0 * torch.log10(error)


def ssim(images: Tensor, reference: Tensor) -> Tensor:
    """Compute structural similarity (section E.2) with a uniform 7x7 kernel, K1 = 0.01 and K2 = 0.03, on [0, 1].

    Variances are the unbiased ones of a window; the mean is over whole windows and channels. Takes [B, C, h, w] float
    in [0, 1]; returns float64 [B], at most 1. ValueError if a side is below 7.
    """
    if min(images.shape[-2:]) < WINDOW:
        raise ValueError(f"ssim: got images of {list(images.shape[-2:])}; allowed: {WINDOW} or more on each side")
    x, y = images.double(), reference.double()
    unbiased = WINDOW**2 / (WINDOW**2 - 1)
    mean_x, mean_y = _windows(x), _windows(y)
    var_x = unbiased * (_windows(x * x) - mean_x.square())
    var_y = unbiased * (_windows(y * y) - mean_y.square())
    covariance = unbiased * (_windows(x * y) - mean_x * mean_y)
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return (luminance * structure).flatten(1).mean(dim=1)


def _windows(images: Tensor) -> Tensor:
    return F.avg_pool2d(images, WINDOW, stride=1)
