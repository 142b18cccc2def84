"""Modulation of the denoiser's features by t and z: variants of adaptive group norm (3.1, G.1, tables 7, 9, 11)."""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from soda_dist.models.layers import group_count, group_norm, lecun_normal_

Kind = Literal["two_stage", "no_scale", "sum", "concat"]


def adaptive_norm(*, kind: Kind, channels: int, time_dim: int | None, latent_dim: int) -> "AdaptiveNorm":
    """Build the variant `kind`; without a latent every variant is `TimeNorm`.

    Args:
        time_dim: width of the timestep embedding; None = no t.
        latent_dim: width of the layer's part of z; 0 = no z.

    Raises:
        ValueError: an unknown kind.
    """
    if latent_dim == 0:
        return TimeNorm(channels=channels, time_dim=time_dim)
    match kind:
        case "two_stage":
            return TwoStage(channels=channels, time_dim=time_dim, latent_dim=latent_dim)
        case "no_scale":
            return ShiftOnly(channels=channels, time_dim=time_dim, latent_dim=latent_dim)
        case "sum":
            return Summed(channels=channels, time_dim=time_dim, latent_dim=latent_dim)
        case "concat":
            return Concatenated(channels=channels, time_dim=time_dim, latent_dim=latent_dim)
        case _:
            raise ValueError(f"modulation: got {kind}; allowed: two_stage, no_scale, sum, concat")


class AdaptiveNorm(nn.Module, ABC):
    """scale * GroupNorm(h) + shift, with a scale and a shift per sample and channel.

    The norm has no affine of its own: the bias of t's projection is one. Our reading: scales are 1 + s.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.groups = group_count(channels)

    @abstractmethod
    def affine(self, time: Tensor | None, latent: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return scale and shift, [B, C] or [1, C] each."""

    @abstractmethod
    def start(self) -> None:
        """Set the initial weights."""

    def forward(self, h: Tensor, time: Tensor | None, latent: Tensor | None) -> Tensor:
        """Normalise and modulate float [B, C, h, w], shape and dtype kept.

        Args:
            time: [B, time_dim] float, the timestep embedding; None if the layer takes no t.
            latent: [B, latent_dim] float, its part of z, zeros where masked; None if it takes no z.
        """
        scale, shift = (each.expand(len(h), -1) for each in self.affine(time, latent))
        return group_norm(h, self.groups, scale, shift)


class TimeNorm(AdaptiveNorm):
    """t_s * GroupNorm(h) + t_b, for layers without z; a learnt affine if they take no t."""

    def __init__(self, *, channels: int, time_dim: int | None) -> None:
        super().__init__(channels)
        self.time = nn.Linear(time_dim, 2 * channels) if time_dim else None
        if self.time is None:
            self.learnt = nn.Parameter(torch.zeros(2 * channels))

    @torch.no_grad()
    def start(self) -> None:
        """Set LeCun weights in t's projection."""
        if self.time is not None:
            lecun_normal_(self.time.weight)
            nn.init.zeros_(self.time.bias)

    def affine(self, time: Tensor | None, latent: Tensor | None) -> tuple[Tensor, Tensor]:
        both = self.learnt[None] if self.time is None else self.time(time)
        scale, shift = both.chunk(2, 1)
        return 1 + scale, shift


class _WithLatent(TimeNorm):
    """A projection of z besides that of t: no bias, so that masking leaves t's stage unchanged; zero at the start."""

    outputs = 2

    def __init__(self, *, channels: int, time_dim: int | None, latent_dim: int) -> None:
        super().__init__(channels=channels, time_dim=time_dim)
        self.latent = nn.Linear(latent_dim, self.outputs * channels, bias=False)

    @torch.no_grad()
    def start(self) -> None:
        """Set z's projection to zero: at first the network does not depend on z."""
        super().start()
        nn.init.zeros_(self.latent.weight)


class TwoStage(_WithLatent):
    """The paper's default (section 3.1, G.1, appendix B): z_s * (t_s * GroupNorm(h) + t_b) + z_b."""

    def affine(self, time: Tensor | None, latent: Tensor | None) -> tuple[Tensor, Tensor]:
        t_scale, t_shift = super().affine(time, None)
        z_scale, z_shift = self.latent(latent).chunk(2, 1)
        return (1 + z_scale) * t_scale, (1 + z_scale) * t_shift + z_shift


class ShiftOnly(_WithLatent):
    """No scale modulation (tables 9, 11): t_s * GroupNorm(h) + t_b + z_b. Our reading: t keeps its scale."""

    outputs = 1

    def affine(self, time: Tensor | None, latent: Tensor | None) -> tuple[Tensor, Tensor]:
        t_scale, t_shift = super().affine(time, None)
        return t_scale, t_shift + self.latent(latent)


class Summed(_WithLatent):
    """Sum modulation (tables 9, 11): (s, b) = Linear(t) + Linear(z), one pair for both."""

    def affine(self, time: Tensor | None, latent: Tensor | None) -> tuple[Tensor, Tensor]:
        t_scale, t_shift = super().affine(time, None)
        z_scale, z_shift = self.latent(latent).chunk(2, 1)
        return t_scale + z_scale, t_shift + z_shift


class Concatenated(AdaptiveNorm):
    """Concat modulation (tables 9, 11): (s, b) = Linear([t, z]).

    The same functions as `Summed`, but initialised as one projection of both inputs.
    """

    def __init__(self, *, channels: int, time_dim: int | None, latent_dim: int) -> None:
        super().__init__(channels)
        self.both = nn.Linear((time_dim or 0) + latent_dim, 2 * channels)

    @torch.no_grad()
    def start(self) -> None:
        """Set LeCun weights for t and z alike: the network depends on both from the start."""
        lecun_normal_(self.both.weight)
        nn.init.zeros_(self.both.bias)

    def affine(self, time: Tensor | None, latent: Tensor | None) -> tuple[Tensor, Tensor]:
        assert latent is not None
        joined = latent if time is None else torch.cat([time, latent.to(time.dtype)], 1)
        scale, shift = self.both(joined).chunk(2, 1)
        return 1 + scale, shift
