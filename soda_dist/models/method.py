"""Interface of SODA and every baseline: a loss, a condition, samples."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soda_dist.diffusion.process import GaussianProcess
from soda_dist.diffusion.sampling import Denoised, Noise, ReverseStep, alternating, denoise_loop, guided
from soda_dist.models.condition import Condition, Sources, join
from soda_dist.models.denoiser import Denoiser
from soda_dist.models.layers import autocast
from soda_dist.models.pose_masks import SeparatePoseMasks

Precision = Literal["fp32", "bf16"]
Guide = Literal["latent", "pose", "both"]


class Batch(NamedTuple):
    """B training samples."""

    sources: Sources
    target: Tensor
    """float [B, 3, r, r] in [-1, 1]."""
    pose: Tensor | None
    """float32 [B, P], the target's pose; None = the data has no poses."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Sampling settings of one batch."""

    conditions: Sequence[Condition]
    """One, or several that alternate: stochastic conditioning (section 3.3, table 5)."""
    without: Condition
    """Condition of guidance's other branch, see `Method.unguided`."""
    w: float
    """Guidance scale."""
    plan: Sequence[ReverseStep]
    """The kept steps, see `diffusion.reverse_steps`."""
    noise: Noise
    """Called with the step's index when a step adds noise."""
    choose: Callable[[int], int]
    """Noise level t -> index of its condition; read if there are several."""


class Method(nn.Module, ABC):
    """Model of images. With `bf16` its networks run under autocast; weights and results are float32.

    `pose_masks` draws masks of the poses by itself; None = the loss's argument is the only one.
    """

    sections: int
    """Sections of z that can be masked."""

    def __init__(self, *, precision: Precision, pose_masks: SeparatePoseMasks | None = None) -> None:
        super().__init__()
        self.pose_masks = pose_masks
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"precision: got {precision}; allowed: fp32, bf16")
        self.precision = precision

    @abstractmethod
    def loss(self, batch: Batch, *, t: Tensor, eps: Tensor, keep: Tensor | None, pose_keep: Tensor | None) -> Tensor:
        """Compute the loss of each sample, float32 [B].

        Args:
            t: int64 [B] in 0..T-1.
            eps: [B, 3, r, r] float, standard normal.
            keep: bool [B, sections], False = the section of z is masked; None = no mask.
            pose_keep: bool [B], False = the poses are masked; None = no poses.
        """

    @abstractmethod
    def condition(
        self, sources: Sources, pose: Tensor | None, keep: Tensor | None, pose_keep: Tensor | None
    ) -> Condition:
        """Build the denoiser's condition from the sources and the target's pose, [B, P].

        Masks are `Condition`'s.
        """

    @abstractmethod
    def sample(self, recipe: Recipe, x_T: Tensor) -> Iterator[Denoised]:
        """Yield the states from `x_T` ([B, 3, r, r] float) step by step; the last one is the sample."""

    def unguided(
        self, sources: Sources, pose: Tensor | None, guide: Guide, sections: Sequence[int] | None, keep: Tensor | None
    ) -> Condition:
        """Build the condition of guidance's other branch (section 3.3): without z, or poses, or both.

        Args:
            sections: sections of z to mask; None = all.
            keep: mask of the conditional branch.
        """
        rows, device = len(sources.images), sources.images.device
        pose_keep = None
        if guide in ("latent", "both"):
            keep = torch.ones(rows, self.sections, dtype=torch.bool, device=device) if keep is None else keep.clone()
            keep[:, slice(None) if sections is None else list(sections)] = False
        if guide in ("pose", "both"):
            pose_keep = torch.zeros(rows, dtype=torch.bool, device=device)
        return self.condition(sources, pose, keep, pose_keep)

    def _masked_poses(self, pose_keep: Tensor | None) -> Tensor | None:
        return pose_keep if pose_keep is None or self.pose_masks is None else self.pose_masks(pose_keep)

    def _autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        return autocast(device, enabled=self.precision == "bf16")


class DiffusionMethod(Method):
    """The objective E || eps - D(x_t, t, condition) ||^2 (section 3.1, appendix B); `process` says if D gives eps.

    Args:
        before: modules that precede the denoiser in the order of parameters and of addressed layers.
    """

    def __init__(
        self,
        *,
        denoiser: Denoiser,
        process: GaussianProcess,
        precision: Precision,
        pose_masks: SeparatePoseMasks | None = None,
        **before: nn.Module,
    ) -> None:
        super().__init__(precision=precision, pose_masks=pose_masks)
        for name, module in before.items():
            setattr(self, name, module)
        self.denoiser = denoiser
        self.process = process
        self.sections = denoiser.sections

    def loss(self, batch: Batch, *, t: Tensor, eps: Tensor, keep: Tensor | None, pose_keep: Tensor | None) -> Tensor:
        """Compute each sample's squared error, averaged over pixels and channels: float32 [B]; see `Method.loss`."""
        condition = self.condition(batch.sources, batch.pose, keep, self._masked_poses(pose_keep))
        predicted = self._output(self.process.noised(batch.target, t, eps), t, condition)
        wanted = self.process.wanted(batch.target, t, eps).float()
        return F.mse_loss(predicted, wanted, reduction="none").mean((1, 2, 3))

    def denoise(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Predict the noise, float32 [B, 3, r, r]; arguments as in `Denoiser.forward`."""
        return self.process.noise_in(x, t, self._output(x, t, condition))

    def _output(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        with self._autocast(x.device):
            return self.denoiser(x, t, condition).float()

    def sample(self, recipe: Recipe, x_T: Tensor) -> Iterator[Denoised]:
        """Sample as in `Method.sample`, clipping x_0 at each step."""
        predicts = [
            guided(self.denoise, condition, recipe.without, recipe.w, join=join) for condition in recipe.conditions
        ]
        predict = predicts[0] if len(predicts) == 1 else alternating(predicts, recipe.choose)
        return denoise_loop(predict, recipe.plan, x_T, clip=True, noise=recipe.noise)

    @torch.no_grad()
    def activations(self, x0: Tensor, condition: Condition, t: int, eps: Tensor) -> dict[str, Tensor]:
        """Return each layer's pooled output for noised images (section F.1, unconditional): float32 [B, C] by layer.

        Args:
            x0, eps: images [B, 3, r, r] float in [-1, 1], and noise of their shape.
            t: index of the noise level, 0..T-1.
        """
        found: dict[str, Tensor] = {}
        times = torch.full((len(x0),), t, dtype=torch.int64, device=x0.device)
        with self._autocast(x0.device):
            self.denoiser(
                self.process.noised(x0, times, eps),
                times,
                condition,
                tap=lambda name, h: found.__setitem__(name, h.float().mean((2, 3))),
            )
        return found
