"""Conversion of pixels for the networks and back (appendix C, our reading of the ranges)."""

import torch
import torch.nn.functional as F
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
BASELINE_SIDE = 32
"""Longest side of the raw-pixel baseline, in pixels."""


def source_input(images: Tensor) -> Tensor:
    """Normalise by ImageNet mean and variance: uint8 [..., h, w, 3] to contiguous float32 [..., 3, h, w], E's input."""
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).view(3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=images.device).view(3, 1, 1)
    return (_planes(images) / 255 - mean) / std


def target_input(images: Tensor) -> Tensor:
    """Scale to the denoiser's x_0: uint8 [..., h, w, 3] to contiguous float32 [..., 3, h, w] in [-1, 1]."""
    return _planes(images) / 127.5 - 1


def source_as_target(images: Tensor, size: int) -> Tensor:
    """Convert the encoder's input, float [B, 3, h, w], to the denoiser's range and size, [B, 3, size, size].

    The result is in [-1, 1] if no noise was added to the input.
    """
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).view(3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=images.device).view(3, 1, 1)
    scaled = (images * std + mean) * 2 - 1
    if scaled.shape[-1] == size:
        return scaled
    return F.interpolate(scaled, (size, size), mode="bilinear", antialias=True)


def to_uint8(images: Tensor) -> Tensor:
    """Invert `target_input`: float [B, 3, h, w], rounded and clipped, to contiguous uint8 [B, h, w, 3]."""
    levels = ((images.float() + 1) * 127.5).round().clamp(0, 255)
    return levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _planes(images: Tensor) -> Tensor:
    """uint8 [..., h, w, 3] to contiguous float32 [..., 3, h, w], since group norms work on planes."""
    return images.movedim(-1, -3).to(torch.float32, memory_format=torch.contiguous_format)


def raw_pixels(images: Tensor) -> Tensor:
    """Flatten each image, averaged down to at most 32 px a side: uint8 [B, h, w, 3] to uint8 [B, P]."""
    side = max(images.shape[1:3])
    if side <= BASELINE_SIDE:
        return images.flatten(1)
    size = [max(1, round(length * BASELINE_SIDE / side)) for length in images.shape[1:3]]
    small = F.interpolate(images.permute(0, 3, 1, 2).float(), size, mode="bilinear", antialias=True)
    return small.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).flatten(1)
