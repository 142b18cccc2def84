"""RandAugment (Cubuk et al. 2020) at table 12's setting: layers 2, magnitude 9, its standard deviation 0.5, rate 0.65.

Our reading: the fifteen operations and scales of the original TensorFlow code, which timm calls `rand-m9-mstd0.5`:
drawn with replacement, none with a probability of its own, and not the "increasing" variants (so at magnitude 9
posterize keeps 3 bits, solarize starts at 230 and the enhancements multiply by 1.72). Translations are a share of the
side, as timm's, so that views of any size are moved alike, and by whole pixels, as torchvision's. What an image moves
away from is grey 128; interpolation is bilinear.

Operations take and give uint8 [h, w, 3] and copy Pillow's arithmetic. Those that only map levels are bit-equal to it.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from soda_dist.config.schema import Augmentation
from soda_dist.data.decode import Image
from soda_dist.data.draws import Floats, Ints, normals, uniforms

FILL = (128, 128, 128)
MOST = 10.0
"""Magnitudes are clipped to 0..MOST."""
_LEVELS = np.arange(256, dtype=np.int64)
_GREY = np.array([19595, 38470, 7471]) / 65536
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
_DELTA = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]])


def auto_contrast(image: Image) -> Image:
    """Stretch each channel to 0..255."""
    tables = []
    for counts in _histograms(image):
        used = np.flatnonzero(counts)
        low, high = int(used[0]), int(used[-1])
        scale = 255.0 / (high - low) if high > low else 1.0
        tables.append((_LEVELS * scale - low * scale).clip(0, 255).astype(np.int64) if high > low else _LEVELS)
    return _map_channels(image, tables)


def equalize(image: Image) -> Image:
    """Flatten each channel's histogram, by Pillow's rule."""
    tables = []
    for counts in _histograms(image):
        used = np.flatnonzero(counts)
        step = int(counts.sum() - counts[used[-1]]) // 255
        tables.append((step // 2 + np.cumsum(counts) - counts) // step if len(used) > 1 and step else _LEVELS)
    return _map_channels(image, tables)


def invert(image: Image) -> Image:
    return cv2.bitwise_not(image)


def posterize(image: Image, bits: int) -> Image:
    """Keep the `bits` highest bits."""
    return image & np.uint8(0xFF00 >> bits & 0xFF)


def solarize(image: Image, threshold: int) -> Image:
    """Invert the levels from `threshold` on."""
    return _map(image, np.where(threshold > _LEVELS, _LEVELS, 255 - _LEVELS))


def solarize_add(image: Image, add: int) -> Image:
    """Add to the levels below 128."""
    return _map(image, np.where(_LEVELS < 128, _LEVELS + add, _LEVELS))


def color(image: Image, factor: float) -> Image:
    """Away from (> 1) or towards the image's own grey; differs from Pillow by at most 2 levels (it rounds twice)."""
    matrix = factor * np.eye(3) + (1 - factor) * np.tile(_GREY, (3, 1))
    return cv2.transform(image, matrix.astype(np.float32))


def contrast(image: Image, factor: float) -> Image:
    """Away from or towards the mean grey."""
    mean = int(np.dot(_GREY, cv2.mean(image)[:3]) + 0.5)
    return _map(image, _blend(mean, factor))


def brightness(image: Image, factor: float) -> Image:
    """Away from or towards black."""
    return _map(image, _blend(0, factor))


def sharpness(image: Image, factor: float) -> Image:
    """Away from or towards the smoothed image; the border pixels stay. At most 2 levels from Pillow, as `color`."""
    out = cv2.filter2D(image, -1, factor * _DELTA + (1 - factor) * _SMOOTH)
    for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        out[edge] = image[edge]
    return out


def rotate(image: Image, degrees: float) -> Image:
    """Counter-clockwise about the centre."""
    height, width = image.shape[:2]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = width / 2, height / 2
    return _affine(image, np.array([[cos, -sin, x - cos * x + sin * y], [sin, cos, y - sin * x - cos * y]]))


def shear_x(image: Image, factor: float) -> Image:
    """Row y reads from x + factor * y."""
    return _affine(image, np.array([[1, factor, 0], [0, 1, 0]]))


def shear_y(image: Image, factor: float) -> Image:
    """Column x reads from y + factor * x."""
    return _affine(image, np.array([[1, 0, 0], [factor, 1, 0]]))


def translate_x(image: Image, share: float) -> Image:
    """Read from x + share * width, rounded to whole pixels."""
    return np.ascontiguousarray(translate_y(image.transpose(1, 0, 2), share).transpose(1, 0, 2))


def translate_y(image: Image, share: float) -> Image:
    """Read from y + share * height, rounded to whole pixels."""
    side = image.shape[0]
    by = max(-side, min(side, round(share * side)))
    out = np.full_like(image, FILL[0])
    out[max(0, -by) : side - max(0, by)] = image[max(0, by) : side - max(0, -by)]
    return out


class Operation(NamedTuple):
    """An operation and what a magnitude means to it."""

    name: str
    apply: Callable[..., Image]
    amount: Callable[[float, int], float] | None
    """(magnitude / 10, sign -1 or 1) -> argument; None: the operation has none."""


OPERATIONS = (
    Operation("AutoContrast", auto_contrast, None),
    Operation("Equalize", equalize, None),
    Operation("Invert", invert, None),
    Operation("Rotate", rotate, lambda m, sign: sign * 30 * m),
    Operation("Posterize", posterize, lambda m, sign: int(4 * m)),
    Operation("Solarize", solarize, lambda m, sign: int(256 * m)),
    Operation("SolarizeAdd", solarize_add, lambda m, sign: int(110 * m)),
    Operation("Color", color, lambda m, sign: 0.1 + 1.8 * m),
    Operation("Contrast", contrast, lambda m, sign: 0.1 + 1.8 * m),
    Operation("Brightness", brightness, lambda m, sign: 0.1 + 1.8 * m),
    Operation("Sharpness", sharpness, lambda m, sign: 0.1 + 1.8 * m),
    Operation("ShearX", shear_x, lambda m, sign: sign * 0.3 * m),
    Operation("ShearY", shear_y, lambda m, sign: sign * 0.3 * m),
    Operation("TranslateX", translate_x, lambda m, sign: sign * 0.45 * m),
    Operation("TranslateY", translate_y, lambda m, sign: sign * 0.45 * m),
)


class Distortions(NamedTuple):
    """What RandAugment does to each view."""

    active: NDArray[np.bool_]
    """bool [n]: whether it does anything."""
    operation: Ints
    """int64 [n, layers], of OPERATIONS."""
    magnitude: Floats
    """float64 [n, layers] in 0..10."""
    sign: Ints
    """int64 [n, layers], -1 or 1."""


def plan_distortions(seed: int, purpose: str, epochs: Ints, keys: Ints, how: Augmentation) -> Distortions:
    """Algorithm of the paper: each layer an operation drawn evenly, at magnitude N(magnitude, std), for each view."""
    layers = how.randaugment_layers
    u = uniforms(seed, f"{purpose}/operations", epochs, keys, range(1 + 2 * layers))
    noise = normals(seed, f"{purpose}/magnitudes", epochs, keys, range(layers))
    magnitude = np.clip(how.randaugment_magnitude + how.randaugment_magnitude_std * noise, 0.0, MOST)
    operation = (u[:, 1 : 1 + layers] * len(OPERATIONS)).astype(np.int64)
    return Distortions(u[:, 0] < how.randaugment_rate, operation, magnitude, np.where(u[:, 1 + layers :] < 0.5, -1, 1))


def distort(image: Image, plan: Distortions, row: int) -> Image:
    """The view of `row` after its layers."""
    for number, magnitude, sign in zip(
        plan.operation[row].tolist(), plan.magnitude[row].tolist(), plan.sign[row].tolist(), strict=True
    ):
        operation = OPERATIONS[number]
        image = operation.apply(image, operation.amount(magnitude / MOST, sign)) if operation.amount else operation.apply(image)
    return image


def _map(image: Image, table: Ints) -> Image:
    return cv2.LUT(image, table.clip(0, 255).astype(np.uint8))


def _map_channels(image: Image, tables: list[Ints]) -> Image:
    return cv2.LUT(image, np.stack(tables, 1).clip(0, 255).astype(np.uint8)[None])


def _histograms(image: Image) -> list[Ints]:
    """Counts of the 256 levels, for each channel."""
    return [cv2.calcHist([image], [c], None, [256], [0, 256])[:, 0].astype(np.int64) for c in range(3)]


def _blend(base: int, factor: float) -> Ints:
    """base + factor * (level - base), cut off as Pillow does it, in float32."""
    return (np.float32(base) + np.float32(factor) * (_LEVELS - base).astype(np.float32)).clip(0, 255).astype(np.int64)


def _affine(image: Image, matrix: NDArray[np.float64]) -> Image:
    """Output pixel (x, y) reads from matrix @ (x, y, 1), where a pixel's centre lies at its index + 1/2."""
    moved = matrix.copy()
    moved[:, 2] += matrix[:, :2].sum(1) / 2 - 0.5
    size = image.shape[1], image.shape[0]
    return cv2.warpAffine(image, moved, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderValue=FILL)
