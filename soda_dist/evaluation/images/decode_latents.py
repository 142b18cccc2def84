"""Images drawn from given latents, and encoded again: the actors' part of the latent tools (sections 4.3.1 and E.3).

The noise of an image is a function of its key, so that along a row of a picture nothing but z differs, and the number
of actors decides nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from soda_dist.data.views.pair_views import center_views
from soda_dist.diffusion.sampling import ReverseStep, reverse_steps
from soda_dist.evaluation.images.sampling import SampleInputs
from soda_dist.evaluation.images.scores import Images, png
from soda_dist.evaluation.views import addressed_noise
from soda_dist.evaluation.worker import Models
from soda_dist.models.condition import Condition, Sources
from soda_dist.models.latents import Directions, principal_directions, section_columns
from soda_dist.models.method import DiffusionMethod, Guide, Recipe
from soda_dist.models.pixels import source_input, to_uint8
from soda_dist.models.soda import EncDec, Encoding, Soda
from soda_dist.parallel.pool import Pool
from soda_dist.parallel.progress import Progress, Say

CHUNK = 16
"""Images that an actor draws or encodes at a time."""


@dataclass(frozen=True)
class LatentJob:
    """Latents of single images that are to be drawn."""

    keys: NDArray[np.int64]
    """int64 [n], in the test split: the address of each image's noise."""
    z: NDArray[np.float32]
    """float32 [n, D]."""
    pose: NDArray[np.float32] | None
    """float32 [n, P]: of the target and of the source, which is one view; none where the run has no poses."""
    masked: tuple[int, ...] = ()
    """Sections of z that are drawn freely, beside `sampling.masked_sections`."""
    noise: int = 0
    """Number of the noise: equal numbers give a key equal noise."""
    encode: bool = False
    """Whether the drawn images are encoded."""

    def rows(self, at: slice) -> "LatentJob":
        """Some of them."""
        return replace(self, keys=self.keys[at], z=self.z[at], pose=None if self.pose is None else self.pose[at])


@dataclass(frozen=True)
class Decoded:
    """What given latents became."""

    images: Images
    """uint8 [n, r, r, 3]."""
    z: NDArray[np.float32] | None
    """float32 [n, D], of the images; none where they were not encoded."""


def section_of(models: Models, _: None) -> Tensor:
    """The section of z that each of its elements belongs to, int64 [D]; the work of an actor."""
    model = models.method
    assert isinstance(model, Soda | EncDec)
    return (model.denoiser if isinstance(model, Soda) else model.decoder).section_of.cpu()


@torch.no_grad()
def encode_inputs(models: Models, inputs: SampleInputs) -> NDArray[np.float32]:
    """z of the inputs' sources, float32 [n, D]; the work of an actor."""
    assert isinstance(models.method, Encoding)
    return models.method.encode(inputs.sources(models.device)).cpu().numpy()


@dataclass(frozen=True)
class Latents:
    """Latents whose principal directions are asked for."""

    latents: NDArray[np.float32]
    """float32 [n, D]."""
    count: int
    """Of directions of all of z."""
    sections: bool
    """Whether the first direction of each section is asked for too."""


def find_directions(models: Models, pool: Latents) -> list[Directions]:
    """Those of all of z, then of each section the first (E.3); the work of an actor."""
    latents = torch.tensor(pool.latents, device=models.device)
    of = section_of(models, None)
    asked: list[tuple[Tensor | None, int]] = [(None, pool.count)]
    if pool.sections:
        asked += [(section_columns(of, [section]), 1) for section in range(int(of.max()) + 1)]
    found = [principal_directions(latents, columns=columns, count=count) for columns, count in asked]
    return [Directions(*(part.cpu() for part in each)) for each in found]


@torch.no_grad()
def decode_job(models: Models, given: LatentJob) -> Decoded:
    """The work of an actor: guided denoising as `samples.draw` does it, from z in place of its sources."""
    model, how, device = models.method, models.config.sampling, models.device
    side = models.config.data.target_size
    pose = None if given.pose is None else torch.tensor(given.pose, device=device)
    keep = _kept(model.sections, (*how.masked_sections, *given.masked), len(given.keys), device)
    condition = Condition(z=torch.tensor(given.z, device=device), keep=keep, pose=pose, source_pose=pose)
    plan: list[ReverseStep] = []
    if isinstance(model, DiffusionMethod):
        abar = model.process.abar
        plan = reverse_steps(abar, method=how.method, steps=how.steps, variance=how.variance, eta=how.eta)

    def noise(step: int) -> Tensor:
        return addressed_noise(models.config.seed, given.keys, given.noise, step, side).to(device)

    recipe = Recipe(
        conditions=[condition],
        without=unguided(condition, how.guide, how.guided_sections, model.sections),
        w=how.guidance,
        plan=plan,
        noise=lambda i: noise(i + 1),
        choose=lambda t: 0,
    )
    x = noise(0)
    for step in model.sample(recipe, x):
        x = step.x
    images = to_uint8(x).cpu().numpy()
    return Decoded(images, _encode_again(models, images, pose) if given.encode else None)


def _kept(sections: int, masked: Sequence[int], rows: int, device: torch.device) -> Tensor | None:
    if not masked:
        return None
    keep = torch.ones(rows, sections, dtype=torch.bool, device=device)
    keep[:, list(masked)] = False
    return keep


def unguided(condition: Condition, guide: Guide, guided: Sequence[int] | None, sections: int) -> Condition:
    """The condition of guidance's other branch, as `Method.unguided`, where z is given in place of its sources.

    Our reading: without poses z stays the given one, although an encoder that is told poses would give another.

    Args:
        guided: sections that it goes without; none: all.
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
    """z of drawn images, each as a source: they are central crops already."""
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
