"""The training objective: uint8 views in, one loss out."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from soda_dist.models.condition import Sources
from soda_dist.models.layers import addressed
from soda_dist.models.method import Batch, Method
from soda_dist.models.pixels import source_input, target_input
from soda_dist.training.online_probe import OnlineProbe
from soda_dist.training.randomness import draw


class Objective(nn.Module):
    """A method's loss with layer, guidance and pose masking (3.2.1, 3.3) and source noise (3.4, appendix D.3).

    Args:
        model: the method.
        seed: of the run.
        timesteps: T.
        source_noise: standard deviation of the noise on the normalised sources.
        mask_rates: of layer, guidance and pose masking.
        online_probe: trained along on the encoder's latents, by the engine.
    """

    def __init__(
        self,
        *,
        model: Method,
        seed: int,
        timesteps: int,
        source_noise: float,
        mask_rates: tuple[float, float, float],
        online_probe: OnlineProbe | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.seed = seed
        self.timesteps = timesteps
        self.source_noise = source_noise
        self.mask_rates = mask_rates
        self.online_probe = online_probe

    def forward(
        self,
        source: Tensor,
        target: Tensor,
        ok: Tensor,
        index: Tensor,
        present: Tensor,
        source_pose: Tensor,
        target_pose: Tensor,
        label: Tensor,
    ) -> Tensor:
        """Mean loss over a micro-batch, a float32 scalar. In training an online probe takes its latents.

        Args:
            source: [B, S, s, s, 3] uint8.
            target: [B, r, r, 3] uint8.
            ok: [B] bool; False rows (images that could not be read) count as zero, so that the mean's
                denominator, and with it every other sample's weight, does not depend on them.
            index: [B] int64, position in the run: the address of the sample's random numbers; on any device.
            present: [B, S] bool, which slots of `source` hold a view.
            source_pose: [B, S, P] float32; P is 0 where the data has no poses.
            target_pose: [B, P] float32.
            label: [B, L] int64, the online probe's; L is 0 without one.
        """
        draws = draw(
            self.seed,
            index,
            timesteps=self.timesteps,
            sources=source.shape[1] if self.source_noise else 0,
            source_size=source.shape[2],
            target_size=target.shape[1],
            sections=self.model.sections,
            rates=self.mask_rates,
            device=source.device,
        )
        clean = source_input(source)
        noised = clean
        if draws.source_noise is not None:
            noised = torch.add(clean, draws.source_noise, alpha=self.source_noise)
        posed = target_pose.shape[1] > 0
        batch = Batch(
            sources=Sources(noised, present, source_pose if posed else None),
            target=target_input(target),
            pose=target_pose if posed else None,
        )
        with addressed(draws.seeds), self._latents() as seen:
            losses = self.model.loss(
                batch,
                t=draws.t,
                eps=draws.eps,
                keep=draws.keep,
                pose_keep=draws.pose_keep if posed else None,
            )
        if self.online_probe is not None and self.training:
            self.online_probe.take(seen[0], label, ok, draws.seeds)
        return torch.where(ok, losses, 0.0).mean()

    @contextmanager
    def _latents(self) -> Iterator[list[Tensor]]:
        """Record the outputs of the model's aggregation: z as in the loss. Empty without an online probe."""
        seen: list[Tensor] = []
        if self.online_probe is None:
            yield seen
            return
        handle = self.model.get_submodule("aggregation").register_forward_hook(lambda _, __, z: seen.append(z))
        try:
            yield seen
        finally:
            handle.remove()
