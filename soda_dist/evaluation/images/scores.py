"""Similarity of images to their originals, and images as PNG."""

from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from soda_dist.metrics.estimates import mean_of
from soda_dist.metrics.pixels import psnr, ssim

Images = NDArray[np.uint8]


def likeness(images: Images, target: Images) -> dict[str, dict[str, float]]:
    """Return PSNR and SSIM of 8-bit images, mean and standard error over the images."""
    return {name: mean_of(values) for name, values in zip(("psnr", "ssim"), pixel_scores(images, target), strict=True)}


def pixel_scores(images: Images, target: Images) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return PSNR in dB and SSIM of each 8-bit image, float64 [n]."""
    one, other = (torch.tensor(each).permute(0, 3, 1, 2).double() / 255 for each in (images, target))
    return psnr(one, other).numpy(), ssim(one, other).numpy()


def png(image: NDArray[np.uint8]) -> bytes:
    """Encode an RGB image, uint8 [h, w, 3], as PNG."""
    import cv2

    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


def images_of(column: pa.ChunkedArray) -> NDArray[np.uint8]:
    """Decode a column of PNG: uint8 [n, h, w, 3]."""
    import cv2

    found: list[Any] = [cv2.imdecode(np.frombuffer(v.as_buffer(), np.uint8), cv2.IMREAD_COLOR_RGB) for v in column]
    return np.stack(found)
