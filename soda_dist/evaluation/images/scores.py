"""Similarity of images to their originals, and images as PNG."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from soda_dist.metrics.estimates import mean_of
from soda_dist.metrics.pixels import psnr, ssim

Images = NDArray[np.uint8]

ROUNDING_PSNR = 10 * math.log10(12 * 255**2)
"""58.9 dB: PSNR of the error that rounding to 8 bits makes, uniform over one grey level. 8-bit images cannot tell a
smaller error, so no image scores higher: an exactly reproduced one has no finite PSNR of its own."""


def likeness(images: Images, target: Images) -> dict[str, dict[str, float]]:
    """Return PSNR and SSIM of 8-bit images, mean and standard error over the images."""
    names, values = ("psnr", "ssim"), pixel_scores(images, target)
    return {name: summary(name, each) for name, each in zip(names, values, strict=True)}


def pixel_scores(images: Images, target: Images) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return PSNR in dB, at most `ROUNDING_PSNR`, and SSIM of each 8-bit image, float64 [n]."""
    one, other = (torch.tensor(each).permute(0, 3, 1, 2).double() / 255 for each in (images, target))
    return psnr(one, other).clamp(max=ROUNDING_PSNR).numpy(), ssim(one, other).numpy()


def summary(name: str, values: NDArray[np.float64]) -> dict[str, float]:
    """Return mean and standard error of a score over images.

    PSNR, whose mean a few images dominate, has its median and the PSNR of the mean squared error beside it.
    """
    if name != "psnr":
        return mean_of(values)
    mean_error = float((10 ** (-values / 10)).mean())
    return mean_of(values) | {"median": float(np.median(values)), "of_mean_error": -10 * math.log10(mean_error)}


def png(image: NDArray[np.uint8]) -> bytes:
    """Encode an RGB image, uint8 [h, w, 3], as PNG."""
    import cv2

    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


def images_of(column: pa.ChunkedArray) -> NDArray[np.uint8]:
    """Decode a column of PNG: uint8 [n, h, w, 3]."""
    import cv2

    found: list[Any] = [cv2.imdecode(np.frombuffer(v.as_buffer(), np.uint8), cv2.IMREAD_COLOR_RGB) for v in column]
    return np.stack(found)
