"""RandAugment (Cubuk et al. 2020), table 12: 2 layers, magnitude 9 with standard deviation 0.5, rate 0.65.

Our reading: the fifteen operations and scales of timm's `rand-m9-mstd0.5`, drawn with replacement; not its
"increasing" variants (so at magnitude 9 posterize keeps 3 bits, solarize starts at 230 and the enhancements multiply by
1.72), and without a probability per operation, since the rate of 0.65 is the view's. Translations are a share of the
side, the same for views of any size, rounded to whole pixels. Uncovered areas become grey 128; interpolation is
bilinear.

Operations map uint8 [h, w, 3] to the same and follow Pillow's arithmetic; those that only map levels are bit-equal.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from soda_dist.config.sections import Augmentation
from soda_dist.data.views.addressed import Ints, normals, uniforms
from soda_dist.data.views.decode import Image

FILL = (128, 128, 128)
NO_LAYER = np.array([-1, 0], np.float32)
"""An unused layer in `encode_layers`."""
MAX_MAGNITUDE = 10.0
"""Drawn magnitudes are clipped to 0..MAX_MAGNITUDE."""
_LEVELS = np.arange(256)
_FLOATS = _LEVELS.astype(np.float32)
GREY = 19595 / 65536, 38470 / 65536, 7471 / 65536
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
_DELTA = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]])
_TO_GREY = np.tile(GREY, (3, 1))
# Precomputed for every argument: at 32 px building a table costs as much as applying it.
_SOLARIZE = np.where(np.arange(257)[:, None] > _LEVELS, _LEVELS, 255 - _LEVELS).astype(np.uint8)
_SOLARIZE_ADD = np.where(_LEVELS < 128, np.minimum(255, _LEVELS + np.arange(256)[:, None]), _LEVELS).astype(np.uint8)


def auto_contrast(image: Image) -> Image:
    """Stretch each channel to 0..255."""
    tables = np.empty((1, 256, 3), np.uint8)
    for number, channel in enumerate(cv2.split(image)):
        low, high, _, _ = cv2.minMaxLoc(channel)
        tables[0, :, number] = stretch(int(low), int(high))
    return cv2.LUT(image, tables)


def equalize(image: Image) -> Image:
    """Equalize each channel's histogram as Pillow does."""
    counts = np.array([cv2.calcHist([image], [c], None, [256], [0, 256]).ravel() for c in range(3)], np.int64)
    below = counts.cumsum(1) - counts
    step = np.where(counts > 0, below, 0).max(1, keepdims=True) // 255
    tables = np.minimum((step // 2 + below) // np.maximum(1, step), 255)
    return cv2.LUT(image, np.where(step > 0, tables, _LEVELS).T.astype(np.uint8, "C")[None])


def invert(image: Image) -> Image:
    return cv2.bitwise_not(image)


def posterize(image: Image, bits: int) -> Image:
    """Keep the `bits` highest bits."""
    return image & np.uint8(_top_bits(bits))


def solarize(image: Image, threshold: int) -> Image:
    """Invert the levels from `threshold` (0..256) on."""
    return cv2.LUT(image, _SOLARIZE[threshold])


def solarize_add(image: Image, add: int) -> Image:
    """Add `add` (0..255) to the levels below 128."""
    return cv2.LUT(image, _SOLARIZE_ADD[add])


def color(image: Image, factor: float) -> Image:
    """Blend with the grey image; > 1 moves away from it. At most 2 levels from Pillow, which rounds twice."""
    matrix = factor * np.eye(3) + (1 - factor) * _TO_GREY
    return cv2.transform(image, matrix.astype(np.float32))


def contrast(image: Image, factor: float) -> Image:
    """Blend with the mean grey. At most 1 level from Pillow, which rounds each pixel's grey first."""
    red, green, blue, _ = cv2.mean(image)
    return cv2.LUT(image, _blend(int(GREY[0] * red + GREY[1] * green + GREY[2] * blue + 0.5), factor))


def brightness(image: Image, factor: float) -> Image:
    """Blend with black."""
    return cv2.LUT(image, _blend(0, factor))


def sharpness(image: Image, factor: float) -> Image:
    """Blend with the smoothed image, keeping border pixels. At most 2 levels from Pillow, as `color`."""
    out = image.copy()
    out[1:-1, 1:-1] = cv2.filter2D(image, -1, factor * _DELTA + (1 - factor) * _SMOOTH)[1:-1, 1:-1]
    return out


def rotate(image: Image, degrees: float) -> Image:
    """Rotate counter-clockwise about the centre."""
    height, width = image.shape[:2]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = width / 2, height / 2
    return _affine(image, ((cos, -sin, x - cos * x + sin * y), (sin, cos, y - sin * x - cos * y)))


def shear_x(image: Image, factor: float) -> Image:
    """Shear horizontally: row y reads from x + factor * y."""
    return _affine(image, ((1, factor, 0), (0, 1, 0)))


def shear_y(image: Image, factor: float) -> Image:
    """Shear vertically: column x reads from y + factor * x."""
    return _affine(image, ((1, 0, 0), (factor, 1, 0)))


def translate_x(image: Image, share: float) -> Image:
    """Read from x + share * width, rounded to whole pixels."""
    into, source = _overlap(translation(share, image.shape[1]), image.shape[1])
    out = np.full_like(image, FILL[0])
    out[:, into] = image[:, source]
    return out


def translate_y(image: Image, share: float) -> Image:
    """Read from y + share * height, rounded to whole pixels."""
    into, source = _overlap(translation(share, image.shape[0]), image.shape[0])
    out = np.full_like(image, FILL[0])
    out[into] = image[source]
    return out


class Operation(NamedTuple):
    """An operation and its scale of magnitudes."""

    name: str
    apply: Callable[..., Image]
    amount: Callable[[float, int], float] | None
    """(magnitude / MAX_MAGNITUDE, sign -1 or 1) -> argument; None = no argument."""


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
Layer = tuple[int, float, int]
"""Index into OPERATIONS, magnitude in 0..MAX_MAGNITUDE, sign -1 or 1."""


def plan_layers(seed: int, purpose: str, epochs: Ints, keys: Ints, settings: Augmentation) -> list[list[Layer]]:
    """Draw each view's layers: operations uniform, magnitudes N(magnitude, std); at 1 - `randaugment_rate` none."""
    count = settings.randaugment_layers
    u = uniforms(seed, f"{purpose}/operations", epochs, keys, range(1 + 2 * count))
    noise = normals(seed, f"{purpose}/magnitudes", epochs, keys, range(count))
    magnitude = np.clip(
        settings.randaugment_magnitude + settings.randaugment_magnitude_std * noise, 0.0, MAX_MAGNITUDE
    ).tolist()
    operation = (u[:, 1 : 1 + count] * len(OPERATIONS)).astype(np.int64).tolist()
    sign = np.where(u[:, 1 + count :] < 0.5, -1, 1).tolist()
    active = (u[:, 0] < settings.randaugment_rate).tolist()
    rows = zip(active, operation, magnitude, sign, strict=True)
    return [list(zip(o, m, s, strict=True)) if on else [] for on, o, m, s in rows]


def distort(image: Image, layers: list[Layer]) -> Image:
    """Apply layers in order."""
    for number, magnitude, sign in layers:
        _, apply, amount = OPERATIONS[number]
        image = apply(image, amount(magnitude / MAX_MAGNITUDE, sign)) if amount else apply(image)
    return image


def encode_layers(layers: list[list[Layer]], count: int) -> NDArray[np.float32]:
    """Encode layers of n views: float32 [n, count, 2], index into OPERATIONS and argument; (-1, 0) = none."""
    table = np.tile(NO_LAYER, (len(layers), count, 1))
    for row, own in enumerate(layers):
        for place, (number, magnitude, sign) in enumerate(own):
            amount = OPERATIONS[number].amount
            table[row, place] = number, amount(magnitude / MAX_MAGNITUDE, sign) if amount else 0
    return table


def level_table(name: str, amount: float) -> NDArray[np.uint8]:
    """Return the level table, uint8 [256], of Invert, Posterize, Solarize, SolarizeAdd or Brightness."""
    match name:
        case "Invert":
            return (255 - _LEVELS).astype(np.uint8)
        case "Posterize":
            return _LEVELS.astype(np.uint8) & np.uint8(_top_bits(int(amount)))
        case "Solarize":
            return _SOLARIZE[int(amount)]
        case "SolarizeAdd":
            return _SOLARIZE_ADD[int(amount)]
        case _:
            return _blend(0, amount)


def translation(share: float, side: int) -> int:
    """Return the translation in pixels."""
    return round(share * side)


@lru_cache(maxsize=4096)
def stretch(low: int, high: int) -> NDArray[np.uint8]:
    """Return a level table, uint8 [256], that stretches low..high to 0..255."""
    if low == high:
        return _LEVELS.astype(np.uint8)
    scale = 255.0 / (high - low)
    return (_LEVELS * scale - low * scale).clip(0, 255).astype(np.uint8)


def _top_bits(bits: int) -> int:
    """Return a mask of the highest bits."""
    return 0xFF00 >> bits & 0xFF


def _overlap(by: int, side: int) -> tuple[slice, slice]:
    """Return the target and source slices when place x reads from x + by."""
    return slice(max(0, -by), max(0, side - max(0, by))), slice(max(0, by), max(0, side + min(0, by)))


def _blend(base: int, factor: float) -> NDArray[np.uint8]:
    """Return the table base + factor * (level - base), in float32, clipped as in Pillow."""
    blended = np.float32(base) + np.float32(factor) * (_FLOATS - np.float32(base))
    return np.minimum(np.maximum(blended, 0), 255).astype(np.uint8)


def _affine(image: Image, matrix: tuple[tuple[float, float, float], tuple[float, float, float]]) -> Image:
    """Make output pixel (x, y) read from matrix @ (x, y, 1), with pixel centres at index + 1/2."""
    (a, b, c), (d, e, f) = matrix
    indexed = np.array([[a, b, c + (a + b - 1) / 2], [d, e, f + (d + e - 1) / 2]])
    size = image.shape[1], image.shape[0]
    return cv2.warpAffine(image, indexed, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderValue=FILL)
