"""Inputs of the networks besides the noised target: source views, and the condition made from them."""

from typing import NamedTuple

import torch
from torch import Tensor


class Sources(NamedTuple):
    """Source views of B samples, up to S each."""

    images: Tensor
    """float [B, S, 3, h, w], normalised by ImageNet mean and variance."""
    present: Tensor
    """bool [B, S]: the slots that hold a view; at least one per row."""
    poses: Tensor | None
    """float32 [B, S, P]; None = the data has no poses."""


class Condition(NamedTuple):
    """Condition of the denoiser for B samples (section 3.1: z and c_D); None = a part that the method lacks."""

    z: Tensor | None = None
    """float [B, D]; without a bottleneck [B, N, D], the grid's cells as tokens."""
    keep: Tensor | None = None
    """bool [B, sections]: False = the section of z is masked, as if it were zero; None = no mask."""
    pose: Tensor | None = None
    """float32 [B, P]: the target's pose."""
    source_pose: Tensor | None = None
    """float32 [B, P]: the first source's pose, for pose vectors and for Palette."""
    pose_keep: Tensor | None = None
    """bool [B]: False = the poses are masked, as if the data had none; [B, 2]: the sources' and the target's by
    themselves, see `keep_of`; None = no mask."""
    image: Tensor | None = None
    """float [B, 3, r, r] in [-1, 1]: Palette's source at the denoiser's resolution."""


def join(one: Condition, other: Condition) -> Condition:
    """Concatenate the conditions of two batches; a mask that only one of them has is padded with True."""
    parts: dict[str, Tensor | None] = {}
    for name in Condition._fields:
        a, b = getattr(one, name), getattr(other, name)
        if a is None and b is None:
            parts[name] = None
            continue
        if name in ("keep", "pose_keep"):
            a = torch.ones_like(b) if a is None else a
            b = torch.ones_like(a) if b is None else b
        if a is None or b is None:
            raise ValueError(f"{name}: got it in one of two conditions; allowed: both or neither")
        parts[name] = torch.cat([a, b])
    return Condition(**parts)
