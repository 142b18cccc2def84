"""The training objective, from uint8 views to a loss."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from soda_dist.metrics.probe import ALONE, Workers
from soda_dist.models.condition import Sources
from soda_dist.models.layers import addressed
from soda_dist.models.method import Batch, Method
from soda_dist.models.pixels import source_input, target_input
from soda_dist.training.online_probe import OnlineProbe
from soda_dist.training.randomness import draw


class Objective(nn.Module):
    """A method's loss with layer, guidance and pose masking (3.2.1, 3.3) and source noise (3.4, appendix D.3).

    Args:
        source_noise: standard deviation of the noise on the normalised sources.
        mask_rates: probabilities of layer, guidance and pose masking.
        online_probe: trained on the model's latents; the engine updates it.
    """

    workers: Workers = ALONE
    """The processes that train together."""

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
        """Compute the mean loss of a micro-batch, a float32 scalar; in training, pass its latents to the online probe.

        Args:
            source: [B, S, s, s, 3] uint8.
            target: [B, r, r, 3] uint8.
            ok: [B] bool; False = unreadable image: zero loss, still counted, so the other samples keep their weight.
            index: [B] int64, position in the run, which seeds the sample's random numbers; on any device.
            present: [B, S] bool; whether a slot of `source` holds a view.
            source_pose: [B, S, P] float32; P = 0 if the data has no poses.
            target_pose: [B, P] float32.
            label: [B, L] int64, labels of the online probe; L = 0 without one.
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
                batch, t=draws.t, eps=draws.eps, keep=draws.keep, pose_keep=draws.pose_keep if posed else None
            )
        if self.online_probe is not None and self.training:
            self.online_probe.take(seen[0], label, ok, draws.seeds)
        return torch.where(ok, losses, 0.0).mean()

    @contextmanager
    def _latents(self) -> Iterator[list[Tensor]]:
        """Record the z that the loss uses, from the aggregation's output; empty without an online probe."""
        seen: list[Tensor] = []
        if self.online_probe is None:
            yield seen
            return
        handle = self.model.get_submodule("aggregation").register_forward_hook(lambda _, __, z: seen.append(z))
        try:
            yield seen
        finally:
            handle.remove()
