"""Reconstructions and samples: from source images to drawn ones.

The noise of an image is a function of its key, so no number depends on the workers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from soda_dist.diffusion.sampling import Denoised, ReverseStep, reverse_steps
from soda_dist.errors import UserError
from soda_dist.evaluation.images.scores import Images
from soda_dist.evaluation.pieces import rows_at
from soda_dist.evaluation.rows import drawn_order
from soda_dist.evaluation.views import PURPOSE, EvaluationViews, addressed_noise, central_views, pose_columns
from soda_dist.evaluation.worker import Models
from soda_dist.models.condition import Condition, Sources
from soda_dist.models.method import DiffusionMethod, Method, Recipe
from soda_dist.models.pixels import source_input, to_uint8
from soda_dist.parallel.pool import Pool
from soda_dist.parallel.progress import Progress, Say
from soda_dist.training.randomness import mix64

CHUNK = 8
"""Images that a worker draws at a time."""
STRIP_IMAGES, STRIP_STEPS = 2, 8
"""Images and steps whose intermediate states are shown."""


@dataclass(frozen=True)
class SampleInputs:
    """The images that samples start from.

    Attributes:
        keys: int64 [n], in the test split: the address of each sample's noise.
        source: uint8 [n, S, s, s, 3], the encoder's views.
        source_pose: float32 [n, S, P]; None where the run has no poses.
        target: uint8 [n, r, r, 3], what a sample is compared with: the same view, or another one of the same object.
        pose: float32 [n, P], the target's; None where the run has no poses.
    """

    keys: NDArray[np.int64]
    source: Images
    source_pose: NDArray[np.float32] | None
    target: Images
    pose: NDArray[np.float32] | None

    def rows(self, at: slice) -> "SampleInputs":
        """Return some of them."""
        return replace(self, **{name: part[at] for name, part in vars(self).items() if part is not None})

    def sources(self, device: torch.device) -> Sources:
        """Return the sources as the encoder takes them."""
        images = torch.from_numpy(self.source).to(device)
        pose = None if self.source_pose is None else torch.from_numpy(self.source_pose).to(device)
        return Sources(source_input(images), torch.ones(images.shape[:2], dtype=torch.bool, device=device), pose)


@dataclass(frozen=True)
class SampleJob:
    """Samples of some inputs at one guidance scale and from one set of noise.

    Attributes:
        noise: number of the noise: equal numbers give an image equal noise, whatever the guidance.
        strip: of the first inputs so many, intermediate states are returned too.
    """

    inputs: SampleInputs
    guidance: float
    noise: int
    strip: int


@dataclass(frozen=True)
class SampleOutput:
    """Drawn images.

    Attributes:
        images: uint8 [n, r, r, 3].
        times: noise levels, 1..T, that the shown states were denoised from.
        states: uint8 [strip, len(times), r, r, 3], x_t.
        predictions: uint8 [strip, len(times), r, r, 3], x_0 as predicted from x_t.
    """

    images: Images
    times: tuple[int, ...]
    states: Images
    predictions: Images


def pick_inputs(models: Models, count: int) -> SampleInputs:
    """Draw `count` readable images of the test split, in the order of keys (fewer if it has fewer)."""
    config = models.config
    split = config.evaluation.test_split
    reader = models.reader[split]
    chosen: dict[int, EvaluationViews] = {}
    for key in drawn_order(sum(reader.groups), config.seed, split).tolist():
        if len(chosen) == count:
            break
        seen = central_views(rows_at(reader, [key], ["image", *pose_columns(config)]), config)
        if seen.ok.all():
            chosen[key] = seen
    if not chosen:
        got = f"split {split} without a readable image"
        raise UserError("evaluation.test_split", got, "readable images", "choose another split")
    keys = sorted(chosen)
    found = [chosen[key] for key in keys]
    pose = None if found[0].pose is None else np.concatenate([each.pose for each in found])
    return SampleInputs(
        keys=np.array(keys, np.int64),
        source=np.stack([each.source for each in found]),
        source_pose=None if pose is None else pose[:, None],
        target=np.concatenate([each.target for each in found]),
        pose=pose,
    )


@torch.no_grad()
def draw(models: Models, job: SampleJob) -> SampleOutput:
    """Encode the sources and denoise from addressed noise; a worker's job."""
    inputs, model, sampling = job.inputs, models.method, models.config.sampling
    sources = inputs.sources(models.device)
    pose = None if inputs.pose is None else torch.from_numpy(inputs.pose).to(models.device)
    keep = kept_sections(model, sampling.masked_sections, len(inputs.keys), models.device)
    views = _apart(sources) if sampling.stochastic else [sources]
    conditions = [model.condition(each, pose, keep, None) for each in views]
    without = model.unguided(sources, pose, sampling.guide, sampling.guided_sections, keep)
    states, predictions, times = [], [], []
    shown = _spaced(len(_plan(models)), STRIP_STEPS) if job.strip else set()
    drawn = torch.zeros(0)
    steps = denoise(models, conditions, without, guidance=job.guidance, keys=inputs.keys, noise=job.noise)
    for number, (x, step) in enumerate(steps):
        if number in shown:
            states.append(to_uint8(x[: job.strip]).cpu())
            predictions.append(to_uint8(step.x0[: job.strip]).cpu())
            times.append(step.t + 1)
        drawn = step.x
    strips = [
        torch.stack(frames, dim=1).numpy() if frames else np.zeros(0, np.uint8) for frames in (states, predictions)
    ]
    return SampleOutput(to_uint8(drawn).cpu().numpy(), tuple(times), *strips)


def denoise(
    models: Models,
    conditions: list[Condition],
    without: Condition,
    *,
    guidance: float,
    keys: NDArray[np.int64],
    noise: int,
) -> Iterator[tuple[Tensor, Denoised]]:
    """Sample from addressed noise as `sampling` says: (x_t, the step that was taken from it) until x_0.

    Args:
        conditions: of guidance's conditional branch; one is drawn at random for each step.
        without: of the other branch.
        keys, noise: address each image's noise.
    """
    side, seed = models.config.data.target_size, models.config.seed

    def drawn(step: int) -> Tensor:
        return addressed_noise(seed, keys, noise, step, side).to(models.device)

    recipe = Recipe(
        conditions=conditions,
        without=without,
        w=guidance,
        plan=_plan(models),
        noise=lambda i: drawn(i + 1),
        choose=lambda t: mix64(seed, PURPOSE, t) % len(conditions),
    )
    x = drawn(0)
    for step in models.method.sample(recipe, x):
        yield x, step
        x = step.x


def _plan(models: Models) -> list[ReverseStep]:
    """The steps of the reverse process; none where the method decodes at once."""
    model, s = models.method, models.config.sampling
    if not isinstance(model, DiffusionMethod):
        return []
    return reverse_steps(model.process.abar, method=s.method, steps=s.steps, variance=s.variance, eta=s.eta)


def kept_sections(model: Method, masked: Sequence[int], rows: int, device: torch.device) -> Tensor | None:
    """The sections of z that are used, bool [rows, sections]; None = all."""
    if not masked:
        return None
    keep = torch.ones(rows, model.sections, dtype=torch.bool, device=device)
    keep[:, list(masked)] = False
    return keep


def _apart(sources: Sources) -> list[Sources]:
    """Each source view by itself."""
    images, present, poses = sources
    return [
        Sources(images[:, i : i + 1], present[:, i : i + 1], None if poses is None else poses[:, i : i + 1])
        for i in range(images.shape[1])
    ]


def _spaced(count: int, wanted: int) -> set[int]:
    """Up to `wanted` of 0..count-1, evenly spaced, first and last among them."""
    return {round(i * (count - 1) / (wanted - 1)) for i in range(wanted)}


def sample_all(workers: Pool, jobs: Sequence[SampleJob], say: Say) -> list[SampleOutput]:
    """Do each job, in pieces of a few images."""
    progress = Progress(say, "samples", "images", units=lambda piece: len(piece.inputs.keys))
    return [
        replace(parts[0], images=np.concatenate([part.images for part in parts]))
        for parts in workers.map_split(draw, jobs, _cut, progress)
    ]


def _cut(job: SampleJob) -> list[SampleJob]:
    starts = range(0, len(job.inputs.keys), CHUNK)
    return [replace(job, inputs=job.inputs.rows(slice(at, at + CHUNK))) for at in starts]
