"""The training objective: uint8 view pairs in, one loss out."""

import torch
from torch import Tensor, nn

from soda_dist.models.layers import addressed
from soda_dist.models.pixels import source_input, target_input
from soda_dist.models.soda import Soda
from soda_dist.training.randomness import draw


class Objective(nn.Module):
    """Section 3.1's loss with layer and guidance masking (3.2.1) and source noise (3.4, appendix D.3)."""

    def __init__(
        self, *, soda: Soda, seed: int, source_noise: float, layer_mask_rate: float, guidance_mask_rate: float
    ) -> None:
        super().__init__()
        self.soda = soda
        self.seed = seed
        self.source_noise = source_noise
        self.mask_rates = (layer_mask_rate, guidance_mask_rate)

    def forward(self, source: Tensor, target: Tensor, ok: Tensor, index: Tensor) -> Tensor:
        """Mean loss over a micro-batch, a float32 scalar.

        Args:
            source: [B, s, s, 3] uint8.
            target: [B, r, r, 3] uint8.
            ok: [B] bool; False rows (images that could not be read) count as zero, so that the mean's
                denominator, and with it every other sample's weight, does not depend on them.
            index: [B] int64, position in the run: the address of the sample's random numbers.
        """
        draws = draw(
            self.seed,
            index,
            timesteps=self.soda.process.steps,
            source_size=source.shape[1],
            target_size=target.shape[1],
            sections=self.soda.denoiser.sections,
            rates=self.mask_rates,
        )
        clean = source_input(source)
        noised = torch.add(clean, draws.source_noise, alpha=self.source_noise) if self.source_noise else clean
        with addressed(draws.seeds):
            losses = self.soda(noised, target_input(target), draws.t, draws.eps, draws.keep)
        return torch.where(ok, losses, 0.0).mean()
