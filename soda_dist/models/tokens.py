"""z as tokens for cross attention: its sections (section 3.3), or the cells of the encoder's grid (table 1)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from soda_dist.models.pose_encoding import pixel_grid, sinusoidal

CELL_SCALE = 1e-2
"""Scale of cell coordinates in their encoding: neighbours in a 7x7 grid differ clearly."""


class SectionTokens(nn.Module):
    """Each section of z (widths `sizes`) as a token, by its own linear layer; the bias marks a masked one's place."""

    def __init__(self, *, sizes: Sequence[int], dim: int) -> None:
        super().__init__()
        self.sizes = list(sizes)
        self.layers = nn.ModuleList(nn.Linear(size, dim) for size in sizes)

    def forward(self, z: Tensor, keep: Tensor | None) -> Tensor:
        """Map float [B, D], with masked sections already zero, to [B, sections, dim]."""
        cut = z.split(self.sizes, 1)
        return torch.stack([layer(part) for layer, part in zip(self.layers, cut, strict=True)], 1)


class GridTokens(nn.Module):
    """Cells of a square grid as tokens, with an encoding of their places (our reading); masked ones are zero."""

    def __init__(self, *, latent_dim: int, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.layer = nn.Linear(latent_dim, dim)

    def forward(self, z: Tensor, keep: Tensor | None) -> Tensor:
        """Map float [B, N, D], row-major, N a square number, to [B, N, dim]."""
        side = math.isqrt(z.shape[1])
        if side * side != z.shape[1]:
            raise ValueError(f"z: got {z.shape[1]} cells; allowed: a square grid")
        frame = torch.tensor([[-1.0, -1.0, 1.0, 1.0]], device=z.device)
        places = sinusoidal(pixel_grid(frame, side, side), dim=self.dim, scale=CELL_SCALE).flatten(1, 2)
        tokens = self.layer(z)
        tokens = tokens + places.to(tokens.dtype)
        return tokens if keep is None else tokens * keep[:, :, None]
