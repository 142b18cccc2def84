"""Random resized crop, flip and resize (section D.3)."""

import math
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from soda_dist.config.sections import Augmentation
from soda_dist.data.views.addressed import Floats, Ints, uniforms
from soda_dist.data.views.decode import Image

TRIES = 10
_PLAN, _FLIP, _PLACE = 0, 1, slice(2, 4)
_AREA, _ASPECT = slice(4, 4 + TRIES), slice(4 + TRIES, 4 + 2 * TRIES)
DRAWS = range(4 + 2 * TRIES)
"""Draws of every view, used or not, so that no draw's number depends on an earlier one."""


class Crops(NamedTuple):
    """Crop of each view."""

    boxes: Ints
    """int64 [n, 4]: top, left, height, width."""
    flipped: NDArray[np.bool_]
    """bool [n]."""


def plan_crops(seed: int, purpose: str, epochs: Ints, keys: Ints, sizes: Ints, settings: Augmentation) -> Crops:
    """Draw crops (section D.3): at `crop_flip_rate` random resized crops, half of them flipped; else central squares.

    Args:
        sizes: int64 [n, 2], height and width of each image, >= 1.
    """
    u = uniforms(seed, purpose, epochs, keys, DRAWS)
    augmented = u[:, _PLAN] < settings.crop_flip_rate
    boxes = np.where(
        augmented[:, None], random_boxes(u, sizes, settings.crop_area, settings.crop_aspect), square_boxes(sizes)
    )
    return Crops(boxes, augmented & (u[:, _FLIP] < 0.5) if settings.flip else np.zeros(len(u), np.bool_))


def random_boxes(u: Floats, sizes: Ints, area: tuple[float, float], aspect: tuple[float, float]) -> Ints:
    """Compute torchvision's RandomResizedCrop from given uniforms: int64 [n, 4].

    The first of ten tries (area and log aspect uniform) that fits; else the largest central crop of an allowed aspect.
    """
    height, width = sizes[:, :1], sizes[:, 1:]
    # Contiguous, since numpy's exp may differ in the last bit for other layouts.
    low, high = math.log(aspect[0]), math.log(aspect[1])
    ratio = np.exp(low + (high - low) * np.ascontiguousarray(u[:, _ASPECT]))
    pixels = height * width * (area[0] + (area[1] - area[0]) * u[:, _AREA])
    w, h = np.rint(np.sqrt(pixels * ratio)).astype(np.int64), np.rint(np.sqrt(pixels / ratio)).astype(np.int64)
    fits = (w > 0) & (h > 0) & (w <= width) & (h <= height)
    first = fits.argmax(1)[:, None]
    chosen = np.hstack([np.take_along_axis(h, first, 1), np.take_along_axis(w, first, 1)])
    place = (u[:, _PLACE] * (sizes - chosen + 1)).astype(np.int64)
    fallback = _central(sizes, _clipped(sizes, aspect))
    return np.where(fits.any(1, keepdims=True), np.hstack([place, chosen]), fallback)


def square_boxes(sizes: Ints) -> Ints:
    """Return the largest central square of each image: int64 [n, 4]."""
    return _central(sizes, np.repeat(sizes.min(1, keepdims=True), 2, 1))


def _clipped(sizes: Ints, aspect: tuple[float, float]) -> Ints:
    height, width = sizes[:, 0], sizes[:, 1]
    h = np.where(width < aspect[0] * height, np.rint(width / aspect[0]).astype(np.int64), height)
    w = np.where(width > aspect[1] * height, np.rint(height * aspect[1]).astype(np.int64), width)
    return np.maximum(1, np.stack([h, w], 1))


def _central(sizes: Ints, box: Ints) -> Ints:
    return np.hstack([(sizes - box) // 2, box])


def resize_into(crop: Image, out: Image, flip: bool) -> None:
    """Resize `crop` [h, w, 3] into `out` [r, s, 3], optionally mirrored: bilinear, with a low pass when shrinking.

    A side of s pixels that shrinks at least m times, m whole, is resized to m * s pixels, which are then averaged. The
    remaining ratio, below two, gets a three-tap blur with the variance by which Pillow's antialiasing triangle exceeds
    the bilinear one. As close to Pillow's bilinear as INTER_AREA (1 level on average), in a third of its time.
    """
    rows, columns = out.shape[:2]
    height, width = crop.shape[:2]
    down, across = max(1, height // rows), max(1, width // columns)
    crop = _low_pass(crop, height / (down * rows), width / (across * columns))
    if down == across == 1:
        cv2.resize(crop, (columns, rows), dst=out, interpolation=cv2.INTER_LINEAR)
    else:
        fine = cv2.resize(crop, (across * columns, down * rows), interpolation=cv2.INTER_LINEAR)
        cv2.resize(fine, (columns, rows), dst=out, interpolation=cv2.INTER_AREA)
    if flip:
        cv2.flip(out, 1, dst=out)


def _low_pass(crop: Image, down: float, across: float) -> Image:
    """Blur `crop` for sampling every `down`-th and `across`-th pixel (< 1: enlarged)."""
    rows, columns = _sigma(down), _sigma(across)
    if not rows and not columns:
        return crop
    taps = 3 if columns else 1, 3 if rows else 1
    return cv2.GaussianBlur(crop, taps, columns or 1.0, sigmaY=rows or 1.0, borderType=cv2.BORDER_REPLICATE)


def _sigma(ratio: float) -> float:
    """Return OpenCV's sigma for taps [a, 1 - 2a, a], a = (ratio^2 - 1) / 12; 0 if a is negligible in 8 bits."""
    side = (ratio * ratio - 1) / 12
    return math.sqrt(-0.5 / math.log(side / (1 - 2 * side))) if side > 1 / 256 else 0.0
