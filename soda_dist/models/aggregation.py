"""Latents of several sources to one (section 3.3, tables 5 and 12)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MeanAggregation(nn.Module):
    """The mean of the latents."""

    def forward(self, z: Tensor, present: Tensor) -> Tensor:
        """Float [B, ..., D], of z's dtype.

        Args:
            z: float [B, S, ..., D], a latent (or its cells) for each source; absent ones are never read.
            present: bool [B, S], which slots hold one; at least one in each row.
        """
        place = present.view(*present.shape, *(1,) * (z.ndim - 2))
        return z.masked_fill(~place, 0).sum(1) / place.sum(1)


class TransformerAggregation(nn.Module):
    """A shallow transformer over the set of latents (table 12), then their mean; a single one stays as it is.

    So table 5 has the same figures for one source in all of its rows.

    Our readings: layers norm first and have neither dropout nor a norm after the last; sources have no order, and so no
    encoding of their places.

    Args:
        latent_dim: D, a multiple of `heads`.
        depth: layers.
        heads: attention heads.
        multiplier: width of the hidden layers over D.
    """

    def __init__(self, *, latent_dim: int, depth: int, heads: int, multiplier: int) -> None:
        super().__init__()
        if latent_dim % heads:
            raise ValueError(f"heads: got {heads} with latent_dim {latent_dim}; allowed: divisors of latent_dim")
        # nn.TransformerEncoder would start its layers as copies of one.
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
        """Float [B, D]. Sources may be permuted; absent ones neither attend nor are attended to.

        Args:
            z: float [B, S, D], a latent for each source; absent ones are never read.
            present: bool [B, S], which slots hold one; at least one in each row.
        """
        if z.ndim != 3:
            raise ValueError(f"z: got {list(z.shape)}; allowed: [B, S, D]")
        mixed = z = z.masked_fill(~present[:, :, None], 0)
        for layer in self.layers:
            mixed = layer(mixed, src_key_padding_mask=~present)
        alone = present.sum(1, keepdim=True) == 1
        return torch.where(alone, self.mean(z, present), self.mean(mixed, present))


def _gelu(x: Tensor) -> Tensor:
    """By a name of our own: for `F.gelu` torch has a fused layer in eval mode, of another dtype under autocast."""
    return F.gelu(x)
