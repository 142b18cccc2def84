"""Aggregation of the latents of several sources into one (section 3.3, tables 5 and 12)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MeanAggregation(nn.Module):
    """Mean of the latents."""

    def forward(self, z: Tensor, present: Tensor) -> Tensor:
        """Average the latents: float [B, ..., D], of z's dtype.

        Args:
            z: float [B, S, ..., D], the latent (or its grid of cells) of each source; empty slots are never read.
            present: bool [B, S], the filled slots; at least one per row.
        """
        mask = present.view(*present.shape, *(1,) * (z.ndim - 2))
        return z.masked_fill(~mask, 0).sum(1) / mask.sum(1)


class TransformerAggregation(nn.Module):
    """Shallow transformer over the set of latents, then their mean (table 12); a single latent is returned unchanged.

    All rows of table 5 are therefore equal for one source. Our readings: pre-norm layers without dropout or a final
    norm; sources are unordered and have no position encoding.

    Args:
        latent_dim: D, a multiple of `heads`.
        multiplier: width of the hidden layers over D.
    """

    def __init__(self, *, latent_dim: int, depth: int, heads: int, multiplier: int) -> None:
        super().__init__()
        if latent_dim % heads:
            raise ValueError(f"heads: got {heads} with latent_dim {latent_dim}; allowed: divisors of latent_dim")
        # nn.TransformerEncoder would initialise its layers as copies of one.
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                latent_dim,
                heads,
                dim_feedforward=multiplier * latent_dim,
                dropout=0.0,
                activation=_gelu,
                batch_first=True,
                norm_first=True,
            )
            for _ in range(depth)
        )
        self.mean = MeanAggregation()

    def forward(self, z: Tensor, present: Tensor) -> Tensor:
        """Aggregate to float [B, D], whatever the order of the sources; empty slots take no part in attention.

        Args:
            z: float [B, S, D], the latent of each source; empty slots are never read.
            present: bool [B, S], the filled slots; at least one per row.
        """
        if z.ndim != 3:
            raise ValueError(f"z: got {list(z.shape)}; allowed: [B, S, D]")
        mixed = z = z.masked_fill(~present[:, :, None], 0)
        for layer in self.layers:
            mixed = layer(mixed, src_key_padding_mask=~present)
        alone = present.sum(1, keepdim=True) == 1
        return torch.where(alone, self.mean(z, present), self.mean(mixed, present))


def _gelu(x: Tensor) -> Tensor:
    """Hide `F.gelu` from torch, which has a fused eval layer for it with another dtype under autocast."""
    return F.gelu(x)
