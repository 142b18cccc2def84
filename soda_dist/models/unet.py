"""Plan of the UNet: its layers, their grids and mirror pairs, and the section of z for each."""

from collections.abc import Sequence
from typing import NamedTuple

from soda_dist.models.blocks import Resample


class LayerPlan(NamedTuple):
    """A layer before it is built."""

    in_channels: int
    out_channels: int
    side: int
    """Side of its grid; the larger one if it resamples."""
    resample: Resample
    section: int
    """Counted from the outermost pair of layers inwards."""
    attention: bool


def down_plan(
    resolution: int, channels: Sequence[int], blocks: int, attention_resolutions: Sequence[int]
) -> list[LayerPlan]:
    """Plan `blocks` residual blocks per resolution and, except after the last, one that downsamples (appendix C)."""
    if resolution % 2 ** (len(channels) - 1):
        raise ValueError(f"resolution: got {resolution}; allowed: multiples of {2 ** (len(channels) - 1)}")
    plans: list[LayerPlan] = []
    width = channels[0]
    for level, out in enumerate(channels):
        side = resolution >> level
        for _ in range(blocks):
            plans.append(LayerPlan(width, out, side, "none", len(plans), side in attention_resolutions))
            width = out
        if level < len(channels) - 1:
            plans.append(LayerPlan(width, width, side, "down", len(plans), False))
    return plans


def middle_plan(down: Sequence[LayerPlan]) -> list[LayerPlan]:
    """Plan two blocks on the smallest grid, attention between if it has any, both of the last section (our reading)."""
    block = down[-1]._replace(in_channels=down[-1].out_channels)
    return [block, block._replace(attention=False)]


def up_plan(down: Sequence[LayerPlan], *, skips: bool) -> list[LayerPlan]:
    """Mirror `down`; with `skips` a block also takes the output of the block that it mirrors."""
    plans: list[LayerPlan] = []
    width = down[-1].out_channels
    for plan in reversed(down):
        if plan.resample == "down":
            plans.append(plan._replace(in_channels=width, out_channels=width, resample="up"))
        else:
            plans.append(plan._replace(in_channels=width + plan.out_channels * skips))
            width = plan.out_channels
    return plans


def section_sizes(latent_dim: int, sections: int) -> list[int]:
    """Return the widths of z's sections, which differ by at most one, larger ones first (our reading)."""
    if latent_dim < sections:
        raise ValueError(f"latent_dim: got {latent_dim}; allowed: >= {sections}, one for each section")
    return [latent_dim // sections + (i < latent_dim % sections) for i in range(sections)]
