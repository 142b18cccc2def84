"""Masks of poses in training (section 3.3, G.3): one for all poses of a sample, or one for either side."""

from typing import Literal

import torch
from torch import Tensor, nn

from soda_dist.models.layers import AddressedDropout


class SeparatePoseMasks(nn.Module):
    """Draws the masks of the sources' poses and of the target's independently, each at `rate`.

    Addressed like dropout, so they depend on the sample alone; the rate is at most 1 - 2**-16.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.draw = AddressedDropout(rate)

    def forward(self, pose_keep: Tensor) -> Tensor:
        """Mask further poses in training: bool [B] to [B, 2], sources and target; unchanged in eval mode."""
        if not self.training:
            return pose_keep
        drawn = self.draw(torch.ones(len(pose_keep), 2, device=pose_keep.device)) > 0
        return drawn & pose_keep[:, None]


def keep_of(pose_keep: Tensor | None, view: Literal["sources", "target", "both"]) -> Tensor | None:
    """Return the mask of a view's pose, bool [B], from [B] or [B, 2]; `both`: True where both are kept."""
    if pose_keep is None or pose_keep.ndim == 1:
        return pose_keep
    return pose_keep.all(1) if view == "both" else pose_keep[:, 0 if view == "sources" else 1]
