"""SODA: encoder, aggregation and denoiser under one loss (section 3); the encoder-decoder baseline (section F.1)."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soda_dist.diffusion.process import GaussianProcess
from soda_dist.diffusion.sampling import Denoised
from soda_dist.models.batch_norm import grouped
from soda_dist.models.condition import Condition, Sources
from soda_dist.models.decoder import Decoder
from soda_dist.models.denoiser import Denoiser
from soda_dist.models.layers import addressed_apart, number_modules
from soda_dist.models.method import Batch, DiffusionMethod, Method, Precision, Recipe
from soda_dist.models.pose_masks import SeparatePoseMasks, keep_of


class Encoding(Method):
    """Base of the methods with an encoder: z of one or several sources."""

    encoder: nn.Module
    aggregation: nn.Module
    norm_batch: int | None = None
    """Samples of a group of batch norm in training, consecutive in the batch; None = the batch is one group."""

    def encode(self, sources: Sources, pose_keep: Tensor | None = None) -> Tensor:
        """Encode to z, float32 [B, D]; [B, N, D] if the encoder does not pool. `pose_keep`: bool [B], the sources'."""
        with self._autocast(sources.images.device):
            return self.aggregation(self.encode_each(sources, pose_keep), sources.present).float()

    def encode_each(self, sources: Sources, pose_keep: Tensor | None = None) -> Tensor:
        """Encode each source view: float32 [B, S, D] ([B, S, N, D] unpooled), zeros in empty slots.

        Empty slots are skipped, so that batch norm sees only views; on the meta device every slot counts as filled.
        Only an encoder with a pose grid gets poses, so never a frozen one.
        """
        images, present, poses = sources
        # A single slot is never empty, and a mask would make a shape depend on values; a meta mask has no values.
        full = present.is_meta or present.shape[1] == 1
        filled = slice(None) if full else present.flatten()
        rows, places = _rows_and_places(present)
        posed = poses is not None and getattr(self.encoder, "pose", None) is not None
        view_poses = poses.flatten(0, 1)[filled] if poses is not None and posed else None
        kept = pose_keep[rows[filled]] if pose_keep is not None and posed else None
        with (
            self._autocast(images.device),
            addressed_apart(rows[filled], places[filled]),
            grouped(self._views(present)),
        ):
            encoded = self.encoder(images.flatten(0, 1)[filled], view_poses, kept).float()
        if full:
            return encoded.view(*present.shape, *encoded.shape[1:])
        z = encoded.new_zeros(*present.shape, *encoded.shape[1:])
        return z.masked_scatter(present.view(*present.shape, *(1,) * (encoded.ndim - 1)), encoded)

    def _views(self, present: Tensor) -> list[int] | None:
        """Count the views of each group of batch norm; None = one group."""
        if not self.training or self.norm_batch is None or len(present) <= self.norm_batch:
            return None
        groups = present.split(self.norm_batch)
        if present.shape[1] == 1:
            return [len(group) for group in groups]
        counts: list[int] = torch.stack([group.sum() for group in groups]).tolist()
        return counts


def _rows_and_places(present: Tensor) -> tuple[Tensor, Tensor]:
    """Return the row of each slot of [B, S] and its place in that row, int64 [B * S] each."""
    rows, slots = present.shape
    slot = torch.arange(rows * slots, device=present.device)
    return slot // slots, slot % slots


class Soda(Encoding, DiffusionMethod):
    """The objective E || eps - D(x_t, t, E(sources), c_D) ||^2 (section 3.1, appendix B).

    `encoder` maps images (and poses) to latents, `aggregation` the latents of several sources to one.
    """

    def __init__(
        self,
        *,
        encoder: nn.Module,
        aggregation: nn.Module,
        denoiser: Denoiser,
        process: GaussianProcess,
        precision: Precision,
        pose_masks: SeparatePoseMasks | None = None,
    ) -> None:
        super().__init__(
            denoiser=denoiser,
            process=process,
            precision=precision,
            pose_masks=pose_masks,
            encoder=encoder,
            aggregation=aggregation,
        )
        number_modules(self)

    def condition(
        self, sources: Sources, pose: Tensor | None, keep: Tensor | None, pose_keep: Tensor | None
    ) -> Condition:
        """Return z of the sources, with the poses and the masks."""
        source_pose = None if sources.poses is None else sources.poses[:, 0]
        z = self.encode(sources, keep_of(pose_keep, "sources"))
        return Condition(z=z, keep=keep, pose=pose, source_pose=source_pose, pose_keep=pose_keep)


class EncDec(Encoding):
    """The objective || target - decoder(E(sources)) ||^2 (section F.1); an auto-encoder if both views are one."""

    def __init__(
        self,
        *,
        encoder: nn.Module,
        aggregation: nn.Module,
        decoder: Decoder,
        precision: Precision,
        pose_masks: SeparatePoseMasks | None = None,
    ) -> None:
        super().__init__(precision=precision, pose_masks=pose_masks)
        self.encoder = encoder
        self.aggregation = aggregation
        self.decoder = decoder
        self.sections = decoder.sections
        number_modules(self)

    def loss(self, batch: Batch, *, t: Tensor, eps: Tensor, keep: Tensor | None, pose_keep: Tensor | None) -> Tensor:
        """Compute each sample's squared error, averaged over pixels and channels: float32 [B]; t and eps are unused."""
        made = self.decode(self.condition(batch.sources, batch.pose, keep, self._masked_poses(pose_keep)))
        return F.mse_loss(made, batch.target.float(), reduction="none").mean((1, 2, 3))

    def condition(
        self, sources: Sources, pose: Tensor | None, keep: Tensor | None, pose_keep: Tensor | None
    ) -> Condition:
        """Return z of the sources, with the poses and the masks."""
        z = self.encode(sources, keep_of(pose_keep, "sources"))
        return Condition(z=z, keep=keep, pose=pose, pose_keep=pose_keep)

    def decode(self, condition: Condition) -> Tensor:
        """Decode the target, float32 [B, 3, r, r]."""
        assert condition.z is not None
        with self._autocast(condition.z.device):
            return self.decoder(condition).float()

    @torch.no_grad()
    def sample(self, recipe: Recipe, x_T: Tensor) -> Iterator[Denoised]:
        """Yield the decoded image at once: the method has neither noise nor guidance."""
        image = self.decode(recipe.conditions[0]).clamp(-1, 1)
        yield Denoised(0, image, image)
