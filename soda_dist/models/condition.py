"""Inputs of the networks beside the noised target: source views, and the condition that is made of them."""

from typing import NamedTuple

import torch
from torch import Tensor


class Sources(NamedTuple):
    """Source views of B samples, up to S each."""

    images: Tensor
    """float [B, S, 3, h, w], ImageNet mean and variance."""
    present: Tensor
    """bool [B, S]: which slots hold a view; at least one in each row."""
    poses: Tensor | None
    """float32 [B, S, P]; None = the data has no poses."""


class Condition(NamedTuple):
    """A denoiser's condition for B samples (section 3.1: z and c_D). A part that a method does not have is None."""

    z: Tensor | None = None
    """float [B, D]; [B, N, D], a grid's cells as tokens, without a bottleneck."""
    keep: Tensor | None = None
    """bool [B, sections]: False where a section of z is masked, as if it were zero; None = no mask."""
    pose: Tensor | None = None
    """float32 [B, P]: the target's pose."""
    source_pose: Tensor | None = None
    """float32 [B, P]: the first source's pose, for those that modulate by both and for Palette."""
    pose_keep: Tensor | None = None
    """bool [B]: False where the poses are masked, as if the data had none; None = no mask."""
    image: Tensor | None = None
    """float [B, 3, r, r] in [-1, 1]: Palette's source, in the denoiser's own size."""


def join(one: Condition, other: Condition) -> Condition:
    """Join the conditions of two batches; a mask that only one of them has is filled up with True."""
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
            raise ValueError(f"{name}: got it in one condition alone; allowed: in both or in neither")
        parts[name] = torch.cat([a, b])
    return Condition(**parts)
