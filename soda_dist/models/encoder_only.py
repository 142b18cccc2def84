"""Encoder without a denoiser: gives latents, draws no images."""

import torch
from torch import Tensor, nn

from soda_dist.models.condition import Sources


class EncoderAlone(nn.Module):
    """Any encoder of images [B, 3, s, s] under evaluation; encodes the first source only."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    @torch.no_grad()
    def encode(self, sources: Sources) -> Tensor:
        """Encode to z, float32 [B, D]; [B, N, D] if the encoder does not pool."""
        poses = None if sources.poses is None or getattr(self.encoder, "pose", None) is None else sources.poses[:, 0]
        return self.encoder(sources.images[:, 0], poses, None).float()
