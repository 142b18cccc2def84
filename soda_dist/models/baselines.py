"""Baselines of the denoiser alone: unconditional diffusion and Palette (section F.1)."""

from torch import Tensor

from soda_dist.diffusion.process import GaussianProcess
from soda_dist.models.condition import Condition, Sources
from soda_dist.models.denoiser import Denoiser
from soda_dist.models.layers import number_modules
from soda_dist.models.method import DiffusionMethod, Precision
from soda_dist.models.pixels import source_as_target
from soda_dist.models.pose_masks import SeparatePoseMasks


class Unconditional(DiffusionMethod):
    """eps = D(x_t, t): no source. Its latents are a layer's activations for a lightly noised image."""

    def __init__(self, *, denoiser: Denoiser, process: GaussianProcess, precision: Precision) -> None:
        super().__init__(denoiser=denoiser, process=process, precision=precision)
        number_modules(self)

    def condition(
        self, sources: Sources, pose: Tensor | None, keep: Tensor | None, pose_keep: Tensor | None
    ) -> Condition:
        """Return the empty condition."""
        return Condition()


class Palette(DiffusionMethod):
    """eps = D([x_t, source], t): no encoder; the source is resized and stacked on the noised target.

    Our readings: guidance masks by zeroing the stacked source; with poses, the denoiser gets the grids of both views.

    Args:
        size: side of the target; the other arguments are `DiffusionMethod`'s.
    """

    def __init__(
        self,
        *,
        size: int,
        denoiser: Denoiser,
        process: GaussianProcess,
        precision: Precision,
        pose_masks: SeparatePoseMasks | None = None,
    ) -> None:
        super().__init__(denoiser=denoiser, process=process, precision=precision, pose_masks=pose_masks)
        self.size = size
        number_modules(self)

    def condition(
        self, sources: Sources, pose: Tensor | None, keep: Tensor | None, pose_keep: Tensor | None
    ) -> Condition:
        """Return the first source as an image, with both poses and the masks."""
        image = source_as_target(sources.images[:, 0], self.size)
        source_pose = None if sources.poses is None else sources.poses[:, 0]
        return Condition(image=image, keep=keep, pose=pose, source_pose=source_pose, pose_keep=pose_keep)
