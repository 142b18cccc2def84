"""Plain decoder of the encoder-decoder baselines (section F.1): the UNet's up path, without denoising."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soda_dist.models.blocks import ResidualBlock
from soda_dist.models.condition import Condition
from soda_dist.models.denoiser import Conditioned, Conditioning
from soda_dist.models.layers import GroupNorm
from soda_dist.models.modulation import Kind
from soda_dist.models.pose_encoding import PoseGrid
from soda_dist.models.pose_masks import keep_of
from soda_dist.models.unet import LayerPlan, UpPath, down_plan, middle_plan, up_plan


class Decoder(Conditioned):
    """The target from z alone: middle and up path of `Denoiser`, without skips and timesteps.

    Our readings: it starts from a learnt constant grid, and z modulates its layers as in the denoiser.

    Args:
        grid: embeds the target's pose beside the constant; None = no poses. The other arguments are `Denoiser`'s, with
            `conditioning` one of `layer_modulation` and `modulation`.
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
        grid: PoseGrid | None,
    ) -> None:
        down = down_plan(resolution, [base_channels * m for m in channel_multipliers], blocks, attention_resolutions)
        super().__init__(conditioning=conditioning, latent_dim=latent_dim, pairs=len(down), token_dim=0, vector_dim=0)
        middle, up = middle_plan(down), up_plan(down, path=up_path, skips=False)
        middle[0] = middle[0]._replace(in_channels=middle[0].in_channels + (0 if grid is None else grid.channels))
        self._plans = [*middle, *up]
        side, width = middle[0].side, down[-1].out_channels

        def layer(plan: LayerPlan) -> ResidualBlock:
            return ResidualBlock(
                in_channels=plan.in_channels,
                out_channels=plan.out_channels,
                time_dim=None,
                latent_dim=self.latent_width(plan.section),
                modulation=modulation,
                dropout=dropout,
                resample=plan.resample,
                head_dim=head_dim if plan.attention else None,
                token_dim=None,
            )

        self.constant = nn.Parameter(torch.randn(width, side, side))
        self.grid = grid
        self.layers = nn.ModuleList(layer(plan) for plan in self._plans)
        self.norm_out = GroupNorm(up[-1].out_channels, act=False)
        self.conv_out = nn.Conv2d(up[-1].out_channels, 3, 3, padding=1)
        self.start()

    def forward(self, condition: Condition) -> Tensor:
        """Decode the target, float [B, 3, r, r], nominally in [-1, 1]."""
        z = self.masked(condition)
        if z is None:
            raise ValueError("condition: got no z; allowed: one per sample")
        parts = self.parts(z, None)
        h = self.constant.expand(len(z), -1, -1, -1)
        if self.grid is not None:
            if condition.pose is None:
                raise ValueError("condition: got no pose; allowed: one per sample, for the pose grid")
            grid = self.grid(condition.pose, *h.shape[2:], keep_of(condition.pose_keep, "target"))
            h = torch.cat([h, grid.to(h.dtype)], 1)
        for plan, layer in zip(self._plans, self.layers, strict=True):
            h = layer(h, None, parts[self.part_of(plan.section)], None)
        return self.conv_out(F.gelu(self.norm_out(h)))
