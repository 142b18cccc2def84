"""UNet blocks: timestep embedding, residual blocks, cross attention to tokens of z."""

import math
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soda_dist.models.layers import AddressedDropout, GroupNorm, SelfAttention, rescaled
from soda_dist.models.modulation import Kind, adaptive_norm

Resample = Literal["none", "down", "up"]


class TimestepEmbedding(nn.Module):
    """Sinusoidal encoding of t (appendix C), then two linear layers, each with GELU.

    Args:
        dim: width of the encoding.
        width: width of both layers.
        unit: difference of the angles of neighbouring timesteps at the highest frequency; 1 = the original encoding.
    """

    def __init__(self, *, dim: int, width: int, unit: float) -> None:
        super().__init__()
        self.dim, self.unit = dim, unit
        self.layers = nn.Sequential(nn.Linear(dim, width), nn.GELU(), nn.Linear(width, width), nn.GELU())

    def forward(self, t: Tensor) -> Tensor:
        """Embed t: int64 [B] to float [B, width]."""
        half = (self.dim + 1) // 2
        frequencies = torch.exp(-math.log(10_000) / half * torch.arange(half, device=t.device, dtype=torch.float32))
        angles = t[:, None].float() * self.unit * frequencies
        return self.layers(torch.cat([angles.sin(), angles.cos()], 1)[:, : self.dim])


class ResidualBlock(nn.Module):
    """Layer of the UNet: (skip(x) + branch(x)) / sqrt 2, then attention if its grid has any.

    Branch: norm, GELU, resampling, convolution, norm, GELU, dropout, convolution: BigGAN's order, with resampling
    inside the block and on both paths (appendix C). Both norms are modulated. Our reading: 2x2 means to downsample,
    nearest neighbour to upsample; GELU by the error function, since JAX's tanh form is slower on a CPU.

    Args:
        time_dim: width of the timestep embedding; None = no timesteps.
        latent_dim: width of the layer's part of z; 0 = no modulation by z.
        modulation: the way to combine t and z, see `adaptive_norm`.
        dropout: rate before the last convolution.
        resample: `down` halves the grid, `up` doubles it.
        head_dim: width of an attention head; None = no attention.
        token_dim: width of the tokens for cross attention, which also needs `head_dim`; None = no cross attention.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        time_dim: int | None,
        latent_dim: int,
        modulation: Kind,
        dropout: float,
        resample: Resample,
        head_dim: int | None,
        token_dim: int | None,
    ) -> None:
        super().__init__()
        self.resample = resample
        norm = partial(adaptive_norm, kind=modulation, time_dim=time_dim, latent_dim=latent_dim)
        self.modulation_in = norm(channels=in_channels)
        self.conv_in = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.modulation_out = norm(channels=out_channels)
        self.dropout = AddressedDropout(dropout)
        self.conv_out = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
        self.attention = nn.Identity() if head_dim is None else SelfAttention(channels=out_channels, head_dim=head_dim)
        self.cross: CrossAttention | None = None
        if head_dim is not None and token_dim is not None:
            self.cross = CrossAttention(channels=out_channels, head_dim=head_dim, token_dim=token_dim)

    def forward(self, x: Tensor, time: Tensor | None, latent: Tensor | None, tokens: Tensor | None) -> Tensor:
        """Map float [B, in, h, w] to [B, out, h', w'].

        Args:
            time, latent, tokens: [B, time_dim], [B, latent_dim] (its part of z) and [B, N, token_dim]; None if unused.
        """
        h = self._resampled(F.gelu(self.modulation_in(x, time, latent)))
        h = F.gelu(self.modulation_out(self.conv_in(h), time, latent))
        h = self.conv_out(self.dropout(h))
        h = self.attention(rescaled(self.skip(self._resampled(x)), h))
        return h if self.cross is None else self.cross(h, tokens)

    def _resampled(self, h: Tensor) -> Tensor:
        match self.resample:
            case "down":
                return F.avg_pool2d(h, 2)
            case "up":
                return F.interpolate(h, scale_factor=2, mode="nearest")
            case "none":
                return h


class CrossAttention(nn.Module):
    """Attention of cells to tokens of z (section 3.3): (x + attention(GroupNorm(x), tokens)) / sqrt 2.

    `head_dim`, the width of a head, divides `channels`.
    """

    def __init__(self, *, channels: int, head_dim: int, token_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.norm = GroupNorm(channels, act=False)
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(token_dim, 2 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Map x, float [B, C, h, w], and tokens [B, N, token_dim] to [B, C, h, w]."""
        cells = self.norm(x).flatten(2).transpose(1, 2)
        q = self.query(cells).unflatten(2, (-1, self.head_dim)).transpose(1, 2)
        k, v = self.key_value(tokens).unflatten(2, (2, -1, self.head_dim)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return rescaled(x, self.out(mixed).transpose(1, 2).reshape(x.shape))
