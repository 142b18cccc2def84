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
    """Index of its section, counted from the outermost pair inwards."""


class TimestepEmbedding(nn.Module):
    """Sinusoidal encoding of t (appendix C), then two linear layers, each with GELU.

    Our reading: timesteps are whole numbers apart, so that their arguments need no scale; the layers keep the width of
    the encoding.

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
    """A layer of the UNet: (skip(x) + branch(x)) / sqrt 2, then self attention where its grid has it.

    Branch: norm, GELU, resampling, convolution, norm, GELU, dropout, convolution: BigGAN's order, resampling inside the
    block and on both paths (appendix C). Both norms are modulated. Our reading: means of 2x2 pixels down, nearest
    neighbour up; GELU by the error function, since JAX's tanh form takes two to four times as long on a CPU.

    Args:
        in_channels: channels of x.
        out_channels: channels of the result; `in_channels` where it resamples.
        time_dim: width of the timestep embedding.
        latent_dim: width of its section of z.
        dropout: rate before the last convolution.
        resample: `down` halves the grid, `up` doubles it.
        head_dim: width of an attention head; none: no attention.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        time_dim: int,
        latent_dim: int,
        dropout: float,
        resample: Resample,
        head_dim: int | None,
    ) -> None:
        super().__init__()
        self.resample = resample
        self.modulation_in = TwoStageAdaGN(channels=in_channels, time_dim=time_dim, latent_dim=latent_dim)
        self.conv_in = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.modulation_out = TwoStageAdaGN(channels=out_channels, time_dim=time_dim, latent_dim=latent_dim)
        self.dropout = AddressedDropout(dropout)
        self.conv_out = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
        self.attention = nn.Identity() if head_dim is None else SelfAttention(channels=out_channels, head_dim=head_dim)

    def forward(self, x: Tensor, time: Tensor, latent: Tensor) -> Tensor:
        """[B, in, h, w] float to [B, out, h', w']."""
        h = self._resampled(F.gelu(self.modulation_in(x, time, latent)))
        h = F.gelu(self.modulation_out(self.conv_in(h), time, latent))
        h = self.conv_out(self.dropout(h))
        return self.attention(rescaled(self.skip(self._resampled(x)), h))

    def _resampled(self, h: Tensor) -> Tensor:
        match self.resample:
            case "down":
                return F.avg_pool2d(h, 2)
            case "up":
                return F.interpolate(h, scale_factor=2, mode="nearest")
            case "none":
                return h


class Denoiser(nn.Module):
    """eps = D(x_t, t, z) (section 3.1): a symmetric UNet that z reaches by modulation alone.

    Down: at each resolution `blocks` residual blocks, then, but for the last, one that downsamples. Middle: two, and
    attention between them if the last resolution has it. Up: the mirror image; a block takes, concatenated, what the
    down block that it mirrors gave.
    Layers are residual blocks. Section i of z, counted from the outside, modulates down layer i and the up layer that
    mirrors it (section 3.2.1); the middle has the last section (our reading).

    Our readings: both norms of a block are modulated, and t's embedding is as wide as its encoding; together they bring
    the ImageNet denoiser to 33.8 M parameters (table 1: 36 M), 30.8 M of them without z's projections. Attention
    follows the residual blocks at its resolutions but not those that resample; its norms and the head's are plain. The
    last convolution starts like the others: at zero, with z's projections at zero too, it would leave these without a
    gradient in the first step, and the encoder without one in the first two.

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

    Raises:
        ValueError: sizes that do not fit.
    """

    section_of: Tensor

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
        down = _down_plan(resolution, [base_channels * m for m in channel_multipliers], blocks, attention_resolutions)
        middle, up = _middle_plan(down[-1]), _up_plan(down)
        self._plans = {"down": down, "middle": middle, "up": up}
        self.sections = len(down)
        self.section_sizes = _section_sizes(latent_dim, self.sections)
        section_of = [section for section, size in enumerate(self.section_sizes) for _ in range(size)]
        self.register_buffer("section_of", torch.tensor(section_of), persistent=False)

        def layer(plan: _Plan) -> ResidualBlock:
            return ResidualBlock(
                in_channels=plan.in_channels,
                out_channels=plan.out_channels,
                time_dim=position_dim,
                latent_dim=self.section_sizes[plan.section],
                dropout=dropout,
                resample=plan.resample,
                head_dim=head_dim if plan.attention else None,
            )

        self.time = TimestepEmbedding(dim=position_dim)
        self.conv_in = nn.Conv2d(3, base_channels * channel_multipliers[0], 3, padding=1)
        self.down = nn.ModuleList(layer(plan) for plan in down)
        self.middle = nn.ModuleList(layer(plan) for plan in middle)
        self.up = nn.ModuleList(layer(plan) for plan in up)
        self.norm_out = GroupNorm(up[-1].out_channels, act=False)
        self.conv_out = nn.Conv2d(up[-1].out_channels, 3, 3, padding=1)
        self._start()

    def forward(self, x: Tensor, t: Tensor, z: Tensor, keep: Tensor | None) -> Tensor:
        """eps, float [B, 3, r, r].

        Args:
            x: [B, 3, r, r] float, x_t.
            t: int64 [B] in 0..T-1.
            z: [B, D] float.
            keep: [B, sections] bool, False where a section of z is masked: as if it were zero. None: nothing is.
        """
        latents = self._cut(z, keep)
        time = self.time(t)
        # The norms work on planes: an input in another memory order would be copied at each of them.
        h = self.conv_in(x.contiguous())
        skips = []
        for plan, layer in zip(self._plans["down"], self.down, strict=True):
            h = layer(h, time, latents[plan.section])
            if plan.resample == "none":
                skips.append(h)
        for plan, layer in zip(self._plans["middle"], self.middle, strict=True):
            h = layer(h, time, latents[plan.section])
        for plan, layer in zip(self._plans["up"], self.up, strict=True):
            if plan.resample == "none":
                h = torch.cat([h, skips.pop()], 1)
            h = layer(h, time, latents[plan.section])
        return self.conv_out(F.gelu(self.norm_out(h)))

    def modulated_layers(self) -> list[ModulatedLayer]:
        """The layers in the order in which they run, with their sections."""
        return [
            ModulatedLayer(f"{part}.{i}", plan.side, plan.section)
            for part, plans in self._plans.items()
            for i, plan in enumerate(plans)
        ]

    def _cut(self, z: Tensor, keep: Tensor | None) -> tuple[Tensor, ...]:
        if keep is not None:
            if keep.shape != (len(z), self.sections):
                raise ValueError(f"keep: got {list(keep.shape)}; allowed: {[len(z), self.sections]}")
            z = z.masked_fill(~keep[:, self.section_of], 0)
        return z.split(self.section_sizes, 1)

    def _start(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                lecun_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, TwoStageAdaGN):
                module.start()


class _Plan(NamedTuple):
    """A layer before it is built."""

    in_channels: int
    out_channels: int
    side: int
    resample: Resample
    section: int
    attention: bool


def _down_plan(resolution: int, channels: list[int], blocks: int, attention_resolutions: Sequence[int]) -> list[_Plan]:
    if resolution % 2 ** (len(channels) - 1):
        raise ValueError(f"resolution: got {resolution}; allowed: multiples of {2 ** (len(channels) - 1)}")
    plans: list[_Plan] = []
    width = channels[0]
    for level, out in enumerate(channels):
        side = resolution >> level
        for _ in range(blocks):
            plans.append(_Plan(width, out, side, "none", len(plans), side in attention_resolutions))
            width = out
        if level < len(channels) - 1:
            plans.append(_Plan(width, width, side, "down", len(plans), False))
    return plans


def _middle_plan(innermost: _Plan) -> list[_Plan]:
    block = innermost._replace(in_channels=innermost.out_channels)
    return [block, block._replace(attention=False)]


def _up_plan(down: list[_Plan]) -> list[_Plan]:
    plans: list[_Plan] = []
    width = down[-1].out_channels
    for plan in reversed(down):
        if plan.resample == "down":
            plans.append(plan._replace(in_channels=width, out_channels=width, resample="up"))
        else:
            plans.append(plan._replace(in_channels=width + plan.out_channels))
            width = plan.out_channels
    return plans


def _section_sizes(latent_dim: int, sections: int) -> list[int]:
    """Sizes that differ by at most one, the larger ones first (our reading)."""
    if latent_dim < sections:
        raise ValueError(f"latent_dim: got {latent_dim}; allowed: >= {sections}, one for each section")
    return [latent_dim // sections + (i < latent_dim % sections) for i in range(sections)]
