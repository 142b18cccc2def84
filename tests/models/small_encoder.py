"""Encoders of a few thousand weights, and a pose grid that needs no geometry."""

from typing import Any

import torch
from torch import Tensor, nn

from soda_dist.models.encoder import Encoder

SMALL: dict[str, Any] = {
    "arch": "resnet18", "width": 0.125, "stem": "small", "norm": "group", "patch": 4, "image_size": 16,
    "latent_dim": 7, "lr_ratio": 1.0, "drop_path": 0.0, "dropout": 0.0, "pool": True, "pose": None,
}  # fmt: skip
VIT: dict[str, Any] = {"arch": "vit_small", "stem": "imagenet", "norm": "batch"}
"""48 channels in 6 heads, 12 blocks."""


class Slopes(nn.Module):
    """A pose [B, 2] becomes planes that rise along the rows and columns as the pose says; masked ones are zero."""

    channels = 3

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2 * self.channels)
        self.asked: list[tuple[int, int]] = []

    def forward(self, poses: Tensor, h: int, w: int, keep: Tensor | None) -> Tensor:
        self.asked.append((h, w))
        down, right = self.linear(poses)[:, :, None, None].chunk(2, 1)
        ys, xs = torch.linspace(-1, 1, h).to(poses)[:, None], torch.linspace(-1, 1, w).to(poses)
        planes = down * ys + right * xs + 1
        return planes if keep is None else planes.masked_fill(~keep[:, None, None, None], 0)


def encoder(seed: int = 0, *, posed: bool = False, **changes: Any) -> Encoder:
    torch.manual_seed(seed)
    return Encoder(**{**SMALL, "pose": Slopes() if posed else None, **changes})


def images(count: int, size: int = 16, width: int | None = None) -> Tensor:
    return torch.randn(count, 3, size, width or size, generator=torch.Generator().manual_seed(5))


def poses(count: int) -> Tensor:
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(6))


def encoded(e: Encoder, x: Tensor) -> Tensor:
    """z, at poses of their own where the encoder takes them."""
    return e(x) if e.pose is None else e(x, poses(len(x)).to(x))


def perturb(module: nn.Module) -> None:
    """Moves every parameter away from the zeros and ones that some start with."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter))
