"""The denoising UNet D (section 3.1, appendices B and C), modulated in pairs of layers (section 3.2.1)."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soda_dist.models.layers import AddressedDropout, GroupNorm, SelfAttention, lecun_normal_, rescaled
from soda_dist.models.modulation import TwoStageAdaGN

Resample = Literal["none", "down", "up"]


class ModulatedLayer(NamedTuple):
    """A layer that a section of z modulates."""

    name: str
    """The module's path in the denoiser."""
    resolution: int
    """Side of its grid; of the larger one where it resamples."""
    section: int
    """Index of its section, from the outermost pair inwards."""


class TimestepEmbedding(nn.Module):
    """Sinusoidal encoding of t (appendix C), then two linear layers, each with GELU.

    Our reading: timesteps are whole numbers apart, so their arguments are not scaled; the layers keep the encoding's width.

    Args:
        dim: width of the encoding and of the embedding.
    """

    def __init__(self, *, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.layers = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim), nn.GELU())

    def forward(self, t: Tensor) -> Tensor:
        """int64 [B] to float [B, dim]."""
        half = (self.dim + 1) // 2
        frequencies = torch.exp(-math.log(10_000) / half * torch.arange(half, device=t.device, dtype=torch.float32))
        angles = t[:, None].float() * frequencies
        return self.layers(torch.cat([angles.sin(), angles.cos()], 1)[:, : self.dim])


class ResidualBlock(nn.Module):
    """A layer of the UNet: (skip(x) + branch(x)) / sqrt 2, both norms of the branch modulated.

    Norm, GELU, resampling, convolution, norm, GELU, dropout, convolution: BigGAN's order, resampling inside the block and
    on both paths (appendix C). Our reading: means of 2x2 pixels down, nearest neighbour up.

    Args:
        in_channels: channels of x.
        out_channels: channels of the result; the same as `in_channels` where it resamples.
        time_dim: width of the timestep embedding.
        latent_dim: width of its section of z.
        dropout: rate before the last convolution.
        resample: `down` halves the grid, `up` doubles it.
    """

    def __init__(
        self, *, in_channels: int, out_channels: int, time_dim: int, latent_dim: int, dropout: float, resample: Resample
    ) -> None:
        super().__init__()
        self.resample = resample
        self.modulation_in = TwoStageAdaGN(channels=in_channels, time_dim=time_dim, latent_dim=latent_dim)
        self.conv_in = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.modulation_out = TwoStageAdaGN(channels=out_channels, time_dim=time_dim, latent_dim=latent_dim)
        self.dropout = AddressedDropout(dropout)
        self.conv_out = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, time: Tensor, latent: Tensor) -> Tensor:
        """[B, in, h, w] float to [B, out, h', w']."""
        h = self._resampled(F.gelu(self.modulation_in(x, time, latent)))
        h = F.gelu(self.modulation_out(self.conv_in(h), time, latent))
        h = self.conv_out(self.dropout(h))
        return rescaled(self.skip(self._resampled(x)), h)

    def _resampled(self, h: Tensor) -> Tensor:
        match self.resample:
            case "down":
                return F.avg_pool2d(h, 2)
            case "up":
                return F.interpolate(h, scale_factor=2, mode="nearest")
            case "none":
                return h


class Denoiser(nn.Module):
    """eps = D(x_t, t, z) (section 3.1): a symmetric UNet; z reaches it by modulation alone.

    Down: at each resolution `blocks` residual blocks, then, but for the last, one that downsamples. Middle: two, attention
    between them. Up: the mirror image; each block takes, concatenated, the output of the down block that it mirrors.
    Layers are residual blocks. Section i of z, counted from the outside, modulates down layer i and the up layer that
    mirrors it (section 3.2.1); the middle has the last section.

    Our readings: both norms of a block are modulated, and t's embedding is as wide as its encoding, which together bring
    the ImageNet denoiser to 33.9 M parameters (36 M in table 1) and to 30.9 M without the projections of z; norms of
    attention and of the head are plain; attention follows the residual blocks at its resolutions, not the resampling
    ones; the last convolution starts like the others and not at zero: with the projections of z at zero too, these
    would have no gradient in the first step, and the encoder none in the second.

    Args:
        latent_dim: D, at least `sections`.
        resolution: r, a multiple of 2 ** (levels - 1).
        base_channels: channels at multiplier 1.
        channel_multipliers: one a level, from the largest grid on.
        blocks: residual blocks a level, on either path.
        attention_resolutions: sides of the grids that have self attention.
        head_dim: width of an attention head; divides the channels there.
        dropout: rate in each residual block.
        position_dim: width of the timestep encoding.
    """

    def __init__(
        self,
        *,
        latent_dim: int,
        resolution: int,
        base_channels: int,
        channel_multipliers: Sequence[int],
        blocks: int,
        attention_resolutions: Sequence[int],
        head_dim: int,
        dropout: float,
        position_dim: int,
    ) -> None:
        super().__init__()
        levels = len(channel_multipliers)
        self.sections = levels * blocks + levels - 1
        _check(resolution, levels, latent_dim, self.sections)
        self.section_sizes = [latent_dim // self.sections + (i < latent_dim % self.sections) for i in range(self.sections)]
        sizes = torch.tensor(self.section_sizes)
        self.register_buffer("_section", torch.arange(self.sections).repeat_interleave(sizes), persistent=False)
        self._resolutions: list[int] = []

        channels = [base_channels * m for m in channel_multipliers]

        def block(i: int, o: int, section: int, resample: Resample) -> ResidualBlock:
            dim = self.section_sizes[section]
            return ResidualBlock(
                in_channels=i, out_channels=o, time_dim=position_dim, latent_dim=dim, dropout=dropout, resample=resample
            )

        def attention(c: int, side: int) -> nn.Module:
            return SelfAttention(channels=c, head_dim=head_dim) if side in attention_resolutions else nn.Identity()
        raise NotImplementedError
