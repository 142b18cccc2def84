"""An encoder without a denoiser: it gives latents and draws no images."""

import torch
from torch import Tensor, nn

from soda_dist.models.condition import Sources


class EncoderAlone(nn.Module):
    """Any encoder of images [B, 3, s, s] under evaluation; of several sources the first one is encoded."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    @torch.no_grad()
    def encode(self, sources: Sources) -> Tensor:
        """z, float32 [B, D]; [B, N, D] where the encoder does not pool."""
        poses = None if sources.poses is None or getattr(self.encoder, "pose", None) is None else sources.poses[:, 0]
        return self.encoder(sources.images[:, 0], poses, None).float()
