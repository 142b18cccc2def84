"""The denoising UNet D (section 3.1, appendices B, C) and its conditioning on z (3.2.1, 3.3, tables 1, 9)."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soda_dist.models.blocks import ResidualBlock, TimestepEmbedding
from soda_dist.models.condition import Condition
from soda_dist.models.layers import GroupNorm, lecun_normal_
from soda_dist.models.modulation import AdaptiveNorm, Kind
from soda_dist.models.pose_encoding import PoseGrid, PoseVector
from soda_dist.models.pose_masks import keep_of
from soda_dist.models.tokens import GridTokens, SectionTokens
from soda_dist.models.unet import LayerPlan, UpPath, down_plan, middle_plan, section_sizes, up_plan

Conditioning = Literal["layer_modulation", "modulation", "broadcast", "cross_attention", "grid_attention", "none"]
Tap = Callable[[str, Tensor], None]
"""(layer name, its output [B, C, h, w])."""


class ModulatedLayer(NamedTuple):
    """A layer modulated by a section of z."""

    name: str
    """Path of the module in the denoiser."""
    resolution: int
    """Side of its grid; the larger one if it resamples."""
    section: int
    """Index of its section, counted from the outermost layers inwards."""


class Conditioned(nn.Module):
    """Base of the denoiser and the decoder: splits z into sections and gives each layer its part.

    - `layer_modulation`: section i modulates layer i of the way down and the layers of the way up that take its skip
      or undo its downsampling (section 3.2.1, see `up_plan`). The default.
    - `modulation`: all of z modulates every layer (tables 9, 11: without layer modulation).
    - `broadcast`: z is copied to each pixel after the first convolution (table 1: without modulation).
    - `cross_attention`: layers with attention attend to z's sections as tokens (section 3.3).
    - `grid_attention`: they attend to the cells of the encoder's grid (table 1: without bottleneck).
    - `none`: no z.

    Args:
        latent_dim: D.
        pairs: m / 2, layers of the way down.
        token_dim: width of the tokens, for the two kinds of attention.
        vector_dim: width of a pose vector appended to each layer's part of z; 0 = no pose vector.
    """

    section_of: Tensor

    def __init__(
        self, *, conditioning: Conditioning, latent_dim: int, pairs: int, token_dim: int, vector_dim: int
    ) -> None:
        super().__init__()
        self.conditioning = conditioning
        in_sections = conditioning in ("layer_modulation", "cross_attention")
        self.sections = pairs if in_sections else 1
        self.section_sizes = section_sizes(latent_dim, self.sections)
        section_of = [section for section, size in enumerate(self.section_sizes) for _ in range(size)]
        self.register_buffer("section_of", torch.tensor(section_of), persistent=False)
        self.vector_dim = vector_dim
        self.token_dim = token_dim if conditioning in ("cross_attention", "grid_attention") else None
        match conditioning:
            case "cross_attention":
                self.tokens: nn.Module | None = SectionTokens(sizes=self.section_sizes, dim=token_dim)
            case "grid_attention":
                self.tokens = GridTokens(latent_dim=latent_dim, dim=token_dim)
            case _:
                self.tokens = None

    def latent_width(self, section: int) -> int:
        """Return the width of a layer's modulating input: its part of z, plus the pose vector if any."""
        match self.conditioning:
            case "layer_modulation":
                return self.section_sizes[section] + self.vector_dim
            case "modulation":
                return self.section_sizes[0] + self.vector_dim
            case _:
                return 0

    def masked(self, condition: Condition) -> Tensor | None:
        """Return z with masked sections set to zero."""
        z, keep = condition.z, condition.keep
        if z is None or keep is None:
            return z
        if keep.shape != (len(z), self.sections):
            raise ValueError(f"keep: got {list(keep.shape)}; allowed: {[len(z), self.sections]}")
        if z.ndim == 3:
            return z.masked_fill(~keep[:, :, None], 0)
        return z.masked_fill(~keep[:, self.section_of], 0)

    def parts(self, z: Tensor | None, vector: Tensor | None) -> list[Tensor | None]:
        """Return each section's input to its layers: float [B, latent_width], or None."""
        if z is None or self.conditioning not in ("layer_modulation", "modulation"):
            return [None] * self.sections
        cut = z.split(self.section_sizes, 1)
        return [part if vector is None else torch.cat([part, vector.to(part.dtype)], 1) for part in cut]

    def part_of(self, section: int) -> int:
        """Return the index in `parts` for a layer of this section."""
        return section if self.conditioning == "layer_modulation" else 0

    def start(self) -> None:
        """Set the initial weights: LeCun's, and each norm's own."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                lecun_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, AdaptiveNorm):
                module.start()


class Denoiser(Conditioned):
    """eps = D(x_t, t, z, c_D) (section 3.1): a UNet of residual blocks.

    Down: `blocks` blocks at each resolution, then, except at the last, one that downsamples. Middle: two blocks, with
    attention between them if the last resolution has it. Up: see `up_plan`; skips are concatenated. The skip of the
    input convolution is its output alone, without what is concatenated to that.

    Our readings: both norms of a block are modulated, which brings the five denoisers of table 1 closest to their
    sizes. Attention follows blocks at its resolutions but not those that resample, and cross attention follows it; its
    norms and the output's are not modulated. Tokens are as wide as t's encoding. The last convolution starts like the
    others: at zero, with z's projections at zero too, these would get no gradient in the first step, and the encoder
    none in the first two.

    Args:
        conditioning, modulation: see `Conditioned` and `adaptive_norm`.
        latent_dim: D, at least `sections`.
        resolution: r, a multiple of 2 ** (levels - 1).
        base_channels: channels at multiplier 1.
        channel_multipliers: one per level, from the largest grid on.
        blocks: residual blocks per level on the way down; on the way up see `up_plan`.
        up_path: layout of the way up.
        attention_resolutions: sides of the grids with attention.
        head_dim: width of an attention head; divides the channels there.
        position_dim, time_dim, time_unit: width of t's encoding, width of its embedding, and the unit of the encoding,
            see `TimestepEmbedding`.
        image: whether a source image is stacked on x_t (Palette).
        grid: embeds the target's pose, as wide as the first convolution; None = no pose grid.
        source_grid: the same for the source's pose (Palette).
        vector: encodes both poses as a modulating vector; None = no pose vector.

    Raises:
        ValueError: sizes that do not fit.
    """

    def __init__(
        self,
        *,
        conditioning: Conditioning,
        modulation: Kind,
        latent_dim: int,
        resolution: int,
        base_channels: int,
        channel_multipliers: Sequence[int],
        blocks: int,
        attention_resolutions: Sequence[int],
        head_dim: int,
        dropout: float,
        up_path: UpPath,
        position_dim: int,
        time_dim: int,
        time_unit: float,
        image: bool = False,
        grid: PoseGrid | None = None,
        source_grid: PoseGrid | None = None,
        vector: PoseVector | None = None,
    ) -> None:
        down = down_plan(resolution, [base_channels * m for m in channel_multipliers], blocks, attention_resolutions)
        super().__init__(
            conditioning=conditioning,
            latent_dim=latent_dim,
            pairs=len(down),
            token_dim=position_dim,
            vector_dim=0 if vector is None else vector.dim,
        )
        first = down[0].in_channels
        self.up_path = up_path
        self._plans = {"down": down, "middle": middle_plan(down[-1:]), "up": up_plan(down, path=up_path, skips=True)}
        wider = latent_dim if conditioning == "broadcast" else 0
        wider += first * sum(each is not None for each in (grid, source_grid))
        self._plans["down"] = [down[0]._replace(in_channels=first + wider), *down[1:]]

        def layer(plan: LayerPlan) -> ResidualBlock:
            return ResidualBlock(
                in_channels=plan.in_channels,
                out_channels=plan.out_channels,
                time_dim=time_dim,
                latent_dim=self.latent_width(plan.section),
                modulation=modulation,
                dropout=dropout,
                resample=plan.resample,
                head_dim=head_dim if plan.attention else None,
                token_dim=self.token_dim,
            )

        self.time = TimestepEmbedding(dim=position_dim, width=time_dim, unit=time_unit)
        self.conv_in = nn.Conv2d(6 if image else 3, first, 3, padding=1)
        self.grid, self.source_grid, self.vector = grid, source_grid, vector
        self.down = nn.ModuleList(layer(plan) for plan in self._plans["down"])
        self.middle = nn.ModuleList(layer(plan) for plan in self._plans["middle"])
        self.up = nn.ModuleList(layer(plan) for plan in self._plans["up"])
        width = self._plans["up"][-1].out_channels
        self.norm_out = GroupNorm(width, act=False)
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)
        self.start()

    def forward(self, x: Tensor, t: Tensor, condition: Condition, tap: Tap | None = None) -> Tensor:
        """Predict eps, float [B, 3, r, r].

        Args:
            x: x_t, float [B, 3, r, r].
            t: int64 [B] in 0..T-1.
            tap: called with each layer's output.
        """
        z = self.masked(condition)
        parts = self.parts(z, self._vector(condition))
        tokens = None if self.tokens is None else self.tokens(z, condition.keep)
        time = self.time(t)

        def run(part: str, number: int, h: Tensor) -> Tensor:
            section = self.part_of(self._plans[part][number].section)
            h = getattr(self, part)[number](h, time, parts[section], tokens)
            if tap is not None:
                tap(f"{part}.{number}", h)
            return h

        h, skip = self._first(x, z, condition)
        skips = [skip] if self.up_path == "adm" else []
        for number, plan in enumerate(self._plans["down"]):
            h = run("down", number, h)
            if self.up_path == "adm" or plan.resample == "none":
                skips.append(h)
        for number in range(len(self.middle)):
            h = run("middle", number, h)
        for number, plan in enumerate(self._plans["up"]):
            if plan.resample == "none":
                h = torch.cat([h, skips.pop()], 1)
            h = run("up", number, h)
        return self.conv_out(F.gelu(self.norm_out(h)))

    def layer_names(self) -> list[str]:
        """Return the names of the layers, in execution order."""
        return [f"{part}.{i}" for part, plans in self._plans.items() for i in range(len(plans))]

    def modulated_layers(self) -> list[ModulatedLayer]:
        """Return the layers in execution order, with their sections; empty if no section modulates."""
        if self.conditioning != "layer_modulation":
            return []
        return [
            ModulatedLayer(f"{part}.{i}", plan.side, plan.section)
            for part, plans in self._plans.items()
            for i, plan in enumerate(plans)
        ]

    def _vector(self, condition: Condition) -> Tensor | None:
        if self.vector is None:
            return None
        if condition.pose is None or condition.source_pose is None:
            raise ValueError("condition: got no source or target pose; allowed: both, for the pose vector")
        return self.vector(condition.source_pose, condition.pose, keep_of(condition.pose_keep, "both"))

    def _first(self, x: Tensor, z: Tensor | None, condition: Condition) -> tuple[Tensor, Tensor]:
        """Return the first convolution with the broadcast z and the pose grids concatenated, and by itself."""
        if condition.image is not None:
            image = condition.image
            if condition.keep is not None:
                image = image * condition.keep[:, :1, None, None]
            x = torch.cat([x, image], 1)
        # The norms work on planes: each would copy an input in another memory format.
        found = [self.conv_in(x.contiguous())]
        if self.conditioning == "broadcast" and z is not None:
            found.append(z[:, :, None, None].expand(-1, -1, *x.shape[2:]))
        target, sources = keep_of(condition.pose_keep, "target"), keep_of(condition.pose_keep, "sources")
        for grid, poses, keep in (
            (self.grid, condition.pose, target),
            (self.source_grid, condition.source_pose, sources),
        ):
            if grid is not None:
                if poses is None:
                    raise ValueError("condition: got no pose; allowed: one per sample, for the pose grid")
                found.append(grid(poses, *x.shape[2:], keep))
        first = found[0]
        return first if len(found) == 1 else torch.cat([part.to(first.dtype) for part in found], 1), first
