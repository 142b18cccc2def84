"""SODA: encoder, denoiser and forward process under one loss (section 3.1)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soda_dist.diffusion.process import GaussianProcess
from soda_dist.models.denoiser import Denoiser
from soda_dist.models.encoder import Encoder
from soda_dist.models.layers import number_modules


class Soda(nn.Module):
    """The objective E || eps - D(x_t, t, E(source)) ||^2 (section 3.1, appendix B).

    Args:
        encoder: images to latents.
        denoiser: noised targets, timesteps and latents to noise.
        process: the forward process, with its buffers.
        precision: `bf16` computes the networks under autocast; weights and results are float32 either way.
    """

    def __init__(
        self, *, encoder: Encoder, denoiser: Denoiser, process: GaussianProcess, precision: Literal["fp32", "bf16"]
    ) -> None:
        super().__init__()
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"precision: got {precision}; allowed: fp32, bf16")
        self.encoder = encoder
        self.denoiser = denoiser
        self.process = process
        self.precision = precision
        number_modules(self)

    def forward(self, source: Tensor, target: Tensor, t: Tensor, eps: Tensor, keep: Tensor | None) -> Tensor:
        """The loss of each sample, float32 [B]: the mean over pixels and channels of the squared error.

        Args:
            source: [B, 3, h, w] float, ImageNet mean and variance.
            target: [B, 3, r, r] float in [-1, 1].
            t: int64 [B] in 0..T-1.
            eps: [B, 3, r, r] float, standard normal.
            keep: [B, sections] bool, False where a section of z is masked; None: nothing is.
        """
        z = self.encode(source)
        predicted = self.denoise(self.process.noised(target, t, eps), t, z, keep)
        return F.mse_loss(predicted, eps.float(), reduction="none").mean((1, 2, 3))

    def encode(self, images: Tensor) -> Tensor:
        """z, float32 [B, D], of [B, 3, h, w] float images with ImageNet mean and variance."""
        with self._autocast(images):
            return self.encoder(images).float()

    def denoise(self, x: Tensor, t: Tensor, z: Tensor, keep: Tensor | None) -> Tensor:
        """The predicted noise, float32 [B, 3, r, r]; arguments as `Denoiser.forward`'s."""
        with self._autocast(x):
            return self.denoiser(x, t, z, keep).float()

    def _autocast(self, x: Tensor) -> torch.autocast:
        return torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bf16")
