"""Plan of the UNet: its layers, their grids, and the section of z for each."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from soda_dist.models.blocks import Resample

UpPath = Literal["adm", "mirrored"]


class LayerPlan(NamedTuple):
    """A layer before it is built."""

    in_channels: int
    out_channels: int
    side: int
    """Side of its grid; the larger one if it resamples."""
    resample: Resample
    section: int
    """Counted from the outermost layer inwards."""
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


def up_plan(down: Sequence[LayerPlan], *, path: UpPath, skips: bool) -> list[LayerPlan]:
    """Plan the way up from the smallest grid; without `skips` the same blocks take no outputs of the way down.

    - `adm`: the layout of Dhariwal and Nichol 2021, whose hyperparameters table 12 lists. The blocks of a level are one
      more than on the way down. Each takes one skip, last in first out: the outputs of all layers of the way down,
      those that downsample included, and of the input convolution. Between levels a block upsamples.
    - `mirrored`: `down` reversed; each block takes the output of the block that it mirrors.

    A block has the section of the layer whose skip it takes, and a block that upsamples that of the layer which
    downsampled there. So in `adm` the last block of a level shares the section of the upsampling after it; the block
    of the input convolution, which z does not modulate, has the first section (our readings).
    """
    plans: list[LayerPlan] = []
    width = down[-1].out_channels
    for plan in reversed(down):
        taken = width + plan.out_channels * skips
        if plan.resample == "none":
            plans.append(plan._replace(in_channels=taken))
            width = plan.out_channels
            continue
        if path == "adm":
            plans.append(plans[-1]._replace(in_channels=taken, section=plan.section))
        plans.append(plan._replace(in_channels=width, out_channels=width, resample="up"))
    if path == "adm":
        plans.append(plans[-1]._replace(in_channels=width + down[0].out_channels * skips, section=down[0].section))
    return plans


def section_sizes(latent_dim: int, sections: int) -> list[int]:
    """Return the widths of z's sections, which differ by at most one, larger ones first (our reading)."""
    if latent_dim < sections:
        raise ValueError(f"latent_dim: got {latent_dim}; allowed: >= {sections}, one for each section")
    return [latent_dim // sections + (i < latent_dim % sections) for i in range(sections)]
