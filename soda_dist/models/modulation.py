"""How t and z reach the denoiser's features. A variant is a module with the call and the start of `TwoStageAdaGN`."""

import torch
from torch import Tensor, nn

from soda_dist.models.layers import group_count, group_norm, lecun_normal_


class TwoStageAdaGN(nn.Module):
    """Adaptive group norm (sections 3.1, G.1, appendix B): z_s * (t_s * GroupNorm(h) + t_b) + z_b.

    Each of the four is a linear projection to one number a channel. Our reading: scales are 1 + s; z's projection has
    no bias, so that a masked section leaves t_s * GroupNorm(h) + t_b, and starts at zero; the norm has no affine of its
    own, since the biases of t's projection are one.

    Args:
        channels: C.
        time_dim: width of the timestep embedding.
        latent_dim: width of the part of z that it sees.
    """

    def __init__(self, *, channels: int, time_dim: int, latent_dim: int) -> None:
        super().__init__()
        self.groups = group_count(channels)
        self.time = nn.Linear(time_dim, 2 * channels)
        self.latent = nn.Linear(latent_dim, 2 * channels, bias=False)

    @torch.no_grad()
    def start(self) -> None:
        """Initial weights: the network does not depend on z yet."""
        lecun_normal_(self.time.weight)
        nn.init.zeros_(self.time.bias)
        nn.init.zeros_(self.latent.weight)

    def forward(self, h: Tensor, time: Tensor, latent: Tensor) -> Tensor:
        """[B, C, h, w] float to the same shape and dtype.

        Args:
            h: features.
            time: [B, time_dim] float, the timestep's embedding.
            latent: [B, latent_dim] float, the section of z, zeros where it is masked.
        """
        t_scale, t_shift = self.time(time).chunk(2, 1)
        z_scale, z_shift = self.latent(latent).chunk(2, 1)
        scale = (1 + z_scale) * (1 + t_scale)
        shift = (1 + z_scale) * t_shift + z_shift
        return group_norm(h, self.groups, scale, shift)
