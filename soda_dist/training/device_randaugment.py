"""Batched RandAugment on the training device (`data.augmentation.randaugment_on=device`).

Layers are drawn as by a data worker (`data.views.randaugment.plan_layers`). Operations that only map levels are
bit-equal to the worker's. The others compute in float32 and round once: color and sharpness differ by at most one
level, geometric operations by the error of OpenCV's 1/32 pixel coordinates.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from soda_dist.data.views.randaugment import FILL, GREY, OPERATIONS, level_table, stretch, translation

Amounts = list[tuple[str, float]]
"""(operation, argument) per image."""
MOST_PIXELS = 1 << 24
"""Maximum pixels per chunk of images: a level lookup takes an int64 per value."""


def distort(images: Tensor, layers: NDArray[np.float32]) -> None:
    """Apply the views' layers in place.

    Args:
        images: uint8 [n, h, w, 3], on any device.
        layers: float32 [n, L, 2] from `data.views.randaugment.encode_layers`; negative operations are no-ops.
    """
    most = max(1, MOST_PIXELS // (images.shape[1] * images.shape[2]))
    for layer in range(layers.shape[1]):
        numbers = layers[:, layer, 0].astype(np.int64)
        for names, apply in FAMILIES:
            own = [number for number, operation in enumerate(OPERATIONS) if operation.name in names]
            rows = np.flatnonzero(np.isin(numbers, own))
            for part in (rows[i : i + most] for i in range(0, len(rows), most)):
                amounts = [(OPERATIONS[numbers[row]].name, float(layers[row, layer, 1])) for row in part.tolist()]
                at = torch.from_numpy(part).to(images.device)
                images[at] = apply(images[at], amounts)


def _by_table(images: Tensor, amounts: Amounts) -> Tensor:
    """Map levels by a table that depends on the argument alone."""
    tables = torch.from_numpy(np.stack([level_table(name, amount) for name, amount in amounts])).to(images.device)
    return _looked_up(images, tables[:, :, None].expand(-1, -1, 3))


def _contrast(images: Tensor, amounts: Amounts) -> Tensor:
    mean = images.double().mean((1, 2))
    grey = (mean @ mean.new_tensor(GREY) + 0.5).floor().float()[:, None]
    factor = grey.new_tensor([amount for _, amount in amounts])[:, None]
    levels = torch.arange(256, device=images.device, dtype=torch.float32)
    tables = (grey + factor * (levels - grey)).clamp(0, 255).to(torch.uint8)
    return _looked_up(images, tables[:, :, None].expand(-1, -1, 3))


def _auto_contrast(images: Tensor, amounts: Amounts) -> Tensor:
    tables = torch.from_numpy(_stretches()).to(images.device)
    flat = images.flatten(1, 2)
    return _looked_up(images, tables[flat.amin(1).long(), flat.amax(1).long()].transpose(1, 2))


def _equalize(images: Tensor, amounts: Amounts) -> Tensor:
    """Equalize each channel's histogram as Pillow does."""
    count = len(images)
    channel = torch.arange(count * 3, device=images.device).view(count, 1, 3) * 256
    bins = (images.flatten(1, 2).long() + channel).flatten()
    counts = torch.zeros(count * 768, dtype=torch.int64, device=images.device)
    counts = counts.scatter_add_(0, bins, torch.ones_like(bins)).view(count, 3, 256)
    below = counts.cumsum(2) - counts
    step = torch.where(counts > 0, below, 0).amax(2, keepdim=True) // 255
    tables = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    levels = torch.arange(256, device=images.device)
    return _looked_up(images, torch.where(step > 0, tables, levels).to(torch.uint8).transpose(1, 2))


def _looked_up(images: Tensor, tables: Tensor) -> Tensor:
    """Look up the levels of uint8 [n, h, w, 3] images in uint8 [n, 256, 3] tables."""
    return tables.gather(1, images.flatten(1, 2).long()).view_as(images)


def _color(images: Tensor, amounts: Amounts) -> Tensor:
    values = images.float()
    factor = values.new_tensor([amount for _, amount in amounts])[:, None, None, None]
    grey = (values @ values.new_tensor(GREY))[..., None]
    return _levels(factor * values + (1 - factor) * grey)


def _sharpness(images: Tensor, amounts: Amounts) -> Tensor:
    """Blend with the smoothed image, keeping border pixels."""
    values = images.permute(0, 3, 1, 2).float()
    if min(values.shape[2:]) < 3:
        return images
    inner = values[:, :, 1:-1, 1:-1]
    smooth = (F.avg_pool2d(values, 3, 1, divisor_override=1) + 4 * inner) / 13
    factor = values.new_tensor([amount for _, amount in amounts])[:, None, None, None]
    out = images.clone()
    out[:, 1:-1, 1:-1] = _levels(factor * inner + (1 - factor) * smooth).permute(0, 2, 3, 1)
    return out


def _move(images: Tensor, amounts: Amounts) -> Tensor:
    """Rotate, shear or translate with bilinear interpolation; uncovered areas become grey 128."""
    height, width = images.shape[1:3]
    each = [_matrix(name, amount, height, width) for name, amount in amounts]
    matrices = torch.tensor(each, dtype=torch.float32).to(images.device)
    rows, columns = (torch.arange(side, device=images.device) + 0.5 for side in (height, width))
    y, x = torch.meshgrid(rows - height / 2, columns - width / 2, indexing="ij")
    places = torch.stack([x, y, torch.ones_like(x)], -1) @ matrices.transpose(1, 2)[:, None]
    grid = places * places.new_tensor([2 / width, 2 / height])
    values = images.permute(0, 3, 1, 2).float() - FILL[0]
    moved = F.grid_sample(values, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return _levels(moved.permute(0, 2, 3, 1) + FILL[0])


def _matrix(name: str, amount: float, height: int, width: int) -> list[list[float]]:
    """Compute the 2 x 3 matrix from output to input pixels, relative to the image's centre."""
    if name == "Rotate":
        angle = np.radians(amount)
        return [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0]]
    if name == "ShearX":  # about the top left corner
        return [[1, amount, amount * height / 2], [0, 1, 0]]
    if name == "ShearY":
        return [[1, 0, 0], [amount, 1, amount * width / 2]]
    if name == "TranslateX":
        return [[1, 0, translation(amount, width)], [0, 1, 0]]
    return [[1, 0, 0], [0, 1, translation(amount, height)]]


@cache
def _stretches() -> NDArray[np.uint8]:
    """Tables `stretch(low, high)`, uint8 [256, 256, 256]; cached on first use since most processes never need them."""
    return np.stack([[stretch(low, high) for high in range(256)] for low in range(256)])


def _levels(values: Tensor) -> Tensor:
    return values.round().clamp(0, 255).to(torch.uint8)


FAMILIES: tuple[tuple[tuple[str, ...], Callable[[Tensor, Amounts], Tensor]], ...] = (
    (("Invert", "Posterize", "Solarize", "SolarizeAdd", "Brightness"), _by_table),
    (("Contrast",), _contrast),
    (("AutoContrast",), _auto_contrast),
    (("Equalize",), _equalize),
    (("Color",), _color),
    (("Sharpness",), _sharpness),
    (("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"), _move),
)
