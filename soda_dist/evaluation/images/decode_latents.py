"""Images drawn from given latents, and encoded again: the workers' part of the latent tools (sections 4.3.1, E.3).

The noise of an image is a function of its key, so along a row of a picture nothing but z differs, and no number depends
on the workers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from soda_dist.data.views.pair_views import center_views
from soda_dist.evaluation.images.sampling import SampleInputs, denoise, kept_sections
from soda_dist.evaluation.images.scores import Images, png
from soda_dist.evaluation.worker import Models
from soda_dist.models.condition import Condition, Sources
from soda_dist.models.latents import Directions, principal_directions, section_columns
from soda_dist.models.method import Guide
from soda_dist.models.pixels import source_input, to_uint8
from soda_dist.models.soda import EncDec, Encoding, Soda
from soda_dist.parallel.pool import Pool
from soda_dist.parallel.progress import Progress, Say

CHUNK = 16
"""Images that a worker draws or encodes at a time."""


@dataclass(frozen=True)
class LatentJob:
    """Latents of single images that are to be drawn.

    Attributes:
        keys: int64 [n], in the test split: the address of each image's noise.
        z: float32 [n, D].
        pose: float32 [n, P], of the target and of the source, which is one view; None where the run has no poses.
        masked: sections of z that are drawn freely, beside `sampling.masked_sections`.
        noise: number of the noise: equal numbers give a key equal noise.
        encode: whether the drawn images are encoded.
    """

    keys: NDArray[np.int64]
    z: NDArray[np.float32]
    pose: NDArray[np.float32] | None
    masked: tuple[int, ...] = ()
    noise: int = 0
    encode: bool = False

    def rows(self, at: slice) -> "LatentJob":
        """Return some of them."""
        return replace(self, keys=self.keys[at], z=self.z[at], pose=None if self.pose is None else self.pose[at])


@dataclass(frozen=True)
class Decoded:
    """Images drawn from latents, uint8 [n, r, r, 3], and their own latents, float32 [n, D], if they were encoded."""

    images: Images
    z: NDArray[np.float32] | None


def section_of(models: Models, _: None) -> Tensor:
    """The section of each element of z, int64 [D]; a worker's job."""
    model = models.method
    assert isinstance(model, Soda | EncDec)
    return (model.denoiser if isinstance(model, Soda) else model.decoder).section_of.cpu()


@torch.no_grad()
def encode_inputs(models: Models, inputs: SampleInputs) -> NDArray[np.float32]:
    """Encode the sources: z, float32 [n, D]; a worker's job."""
    assert isinstance(models.method, Encoding)
    return models.method.encode(inputs.sources(models.device)).cpu().numpy()


@dataclass(frozen=True)
class DirectionsJob:
    """Latents, float32 [n, D], and how many of their principal directions are wanted.

    `sections`: whether the first direction of each section is wanted too.
    """

    latents: NDArray[np.float32]
    count: int
    sections: bool


def find_directions(models: Models, job: DirectionsJob) -> list[Directions]:
    """Find those of the whole z, then the first of each section (E.3); a worker's job."""
    latents = torch.tensor(job.latents, device=models.device)
    wanted: list[tuple[Tensor | None, int]] = [(None, job.count)]
    if job.sections:
        section = section_of(models, None)
        wanted += [(section_columns(section, [number]), 1) for number in range(int(section.max()) + 1)]
    found = [principal_directions(latents, columns=columns, count=count) for columns, count in wanted]
    return [Directions(*(part.cpu() for part in each)) for each in found]


@torch.no_grad()
def decode_job(models: Models, given: LatentJob) -> Decoded:
    """Draw from z in place of source images, and encode the drawn images if asked to; a worker's job."""
    model, sampling, device = models.method, models.config.sampling, models.device
    pose = None if given.pose is None else torch.tensor(given.pose, device=device)
    keep = kept_sections(model, (*sampling.masked_sections, *given.masked), len(given.keys), device)
    condition = Condition(z=torch.tensor(given.z, device=device), keep=keep, pose=pose, source_pose=pose)
    without = unguided(condition, sampling.guide, sampling.guided_sections, model.sections)
    drawn = torch.zeros(0)
    steps = denoise(models, [condition], without, guidance=sampling.guidance, keys=given.keys, noise=given.noise)
    for _, step in steps:
        drawn = step.x
    images = to_uint8(drawn).cpu().numpy()
    return Decoded(images, _encode_again(models, images, pose) if given.encode else None)


def unguided(condition: Condition, guide: Guide, guided: Sequence[int] | None, sections: int) -> Condition:
    """The condition of guidance's other branch, as `Method.unguided`, where z is given in place of its sources.

    Our reading: without poses z stays the given one, although an encoder that is told poses would give another.

    Args:
        guided: sections that it goes without; None = all.
        sections: of z.
    """
    assert condition.z is not None
    keep, pose_keep, rows = condition.keep, condition.pose_keep, len(condition.z)
    if guide in ("latent", "both"):
        keep = torch.ones(rows, sections, dtype=torch.bool, device=condition.z.device) if keep is None else keep.clone()
        keep[:, slice(None) if guided is None else list(guided)] = False
    if guide in ("pose", "both"):
        pose_keep = torch.zeros(rows, dtype=torch.bool, device=condition.z.device)
    return condition._replace(keep=keep, pose_keep=pose_keep)


def _encode_again(models: Models, images: Images, pose: Tensor | None) -> NDArray[np.float32]:
    """Encode drawn images as sources: they are central crops already."""
    assert isinstance(models.method, Encoding)
    size = models.config.data.source_size
    views = images
    if images.shape[1] != size:
        views, _ = center_views([png(image) for image in images], size=size, resize=1.0)
    source = source_input(torch.tensor(views, device=models.device))[:, None]
    present = torch.ones(len(views), 1, dtype=torch.bool, device=models.device)
    sources = Sources(source, present, None if pose is None else pose[:, None])
    return models.method.encode(sources).cpu().numpy()


def encode_all(workers: Pool, inputs: SampleInputs) -> NDArray[np.float32]:
    """z of the inputs' sources, float32 [n, D], by all workers."""
    pieces = [inputs.rows(slice(at, at + CHUNK)) for at in range(0, len(inputs.keys), CHUNK)]
    return np.concatenate(workers.map(encode_inputs, pieces))


def decode_all(workers: Pool, asked: Sequence[LatentJob], say: Say, what: str) -> list[Decoded]:
    """Each of `asked`, by all workers in pieces of a few images."""
    progress = Progress(say, what, "images", units=lambda piece: len(piece.keys))
    return [_joined(parts) for parts in workers.map_split(decode_job, asked, _cut, progress)]


def _cut(given: LatentJob) -> list[LatentJob]:
    return [given.rows(slice(at, at + CHUNK)) for at in range(0, len(given.keys), CHUNK)]


def _joined(parts: Sequence[Decoded]) -> Decoded:
    latents = [part.z for part in parts if part.z is not None]
    return Decoded(np.concatenate([part.images for part in parts]), np.concatenate(latents) if latents else None)
