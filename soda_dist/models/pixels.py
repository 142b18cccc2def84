"""Pixels in and out of the networks (appendix C, our reading of the ranges)."""

import torch
import torch.nn.functional as F
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
BASELINE_SIDE = 32
"""Longest side of the raw-pixel baseline."""


def source_input(images: Tensor) -> Tensor:
    """The encoder's input: ImageNet mean and variance.

    Args:
        images: uint8 [..., h, w, 3].

    Returns:
        float32 [..., 3, h, w], contiguous.
    """
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).view(3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=images.device).view(3, 1, 1)
    return (_planes(images) / 255 - mean) / std


def target_input(images: Tensor) -> Tensor:
    """The denoiser's x_0: linear to [-1, 1].

    Args:
        images: uint8 [..., h, w, 3].

    Returns:
        float32 [..., 3, h, w] in [-1, 1], contiguous.
    """
    return _planes(images) / 127.5 - 1


def source_as_target(images: Tensor, size: int) -> Tensor:
    """The encoder's input in the denoiser's range and size.

    Args:
        images: float [B, 3, h, w], ImageNet mean and variance.
        size: side of the result.

    Returns:
        float [B, 3, size, size], [-1, 1] where the input is an image without noise.
    """
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).view(3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=images.device).view(3, 1, 1)
    scaled = (images * std + mean) * 2 - 1
    if scaled.shape[-1] == size:
        return scaled
    return F.interpolate(scaled, (size, size), mode="bilinear", antialias=True)


def to_uint8(images: Tensor) -> Tensor:
    """Inverse of `target_input`: rounded to the nearest level, clipped to what can be shown.

    Args:
        images: float [B, 3, h, w], nominally in [-1, 1].

    Returns:
        uint8 [B, h, w, 3], contiguous.
    """
    levels = ((images.float() + 1) * 127.5).round().clamp(0, 255)
    return levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _planes(images: Tensor) -> Tensor:
    """uint8 [..., h, w, 3] to float32 [..., 3, h, w], contiguous: the group norms work on planes."""
    return images.movedim(-1, -3).to(torch.float32, memory_format=torch.contiguous_format)


def raw_pixels(images: Tensor) -> Tensor:
    """uint8 [B, h, w, 3] to uint8 [B, P]: the image, averaged down to at most 32 px a side, as one vector."""
    side = max(images.shape[1:3])
    if side <= BASELINE_SIDE:
        return images.flatten(1)
    size = [max(1, round(length * BASELINE_SIDE / side)) for length in images.shape[1:3]]
    small = F.interpolate(images.permute(0, 3, 1, 2).float(), size, mode="bilinear", antialias=True)
    return small.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).flatten(1)
