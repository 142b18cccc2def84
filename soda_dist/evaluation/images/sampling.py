"""Reconstructions and samples from latents, drawn by actors.

The noise of an image is a function of its key, so the number of actors decides nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from soda_dist.config.sections import Sampling
from soda_dist.diffusion.sampling import ReverseStep, reverse_steps
from soda_dist.errors import UserError
from soda_dist.evaluation.images.scores import Images
from soda_dist.evaluation.views import PURPOSE, EvaluationViews, addressed_noise, central_views, pose_columns
from soda_dist.evaluation.worker import Models
from soda_dist.models.condition import Sources
from soda_dist.models.method import DiffusionMethod, Method, Recipe
from soda_dist.models.pixels import source_input, to_uint8
from soda_dist.parallel.pool import Pool
from soda_dist.parallel.progress import Progress, Say
from soda_dist.training.randomness import mix64

CHUNK = 8
"""Images that an actor draws at a time."""
STRIP_IMAGES, STRIP_STEPS = 2, 8


@dataclass(frozen=True)
class SampleInputs:
    """The images that samples start from."""

    keys: NDArray[np.int64]
    """int64 [n], in the test split: the address of each sample's noise."""
    source: Images
    """uint8 [n, S, s, s, 3], the encoder's views."""
    source_pose: NDArray[np.float32] | None
    """float32 [n, S, P]; none where the run has no poses."""
    target: Images
    """uint8 [n, r, r, 3], what a sample is measured against: the same view, or another of the same object."""
    pose: NDArray[np.float32] | None
    """float32 [n, P], the target's."""

    def rows(self, at: slice) -> "SampleInputs":
        """Some of them."""
        return replace(self, **{name: part[at] for name, part in vars(self).items() if part is not None})

    def sources(self, device: torch.device) -> Sources:
        """As the encoder takes them."""
        images = torch.from_numpy(self.source).to(device)
        pose = None if self.source_pose is None else torch.from_numpy(self.source_pose).to(device)
        return Sources(source_input(images), torch.ones(images.shape[:2], dtype=torch.bool, device=device), pose)


@dataclass(frozen=True)
class SampleJob:
    """A piece of work: samples of some inputs at one guidance scale and from one set of noise."""

    inputs: SampleInputs
    guidance: float
    noise: int
    """Number of the noise: equal numbers give an image equal noise, whatever the guidance."""
    strip: int
    """The first inputs whose intermediate states are returned too."""


@dataclass(frozen=True)
class SampleOutput:
    """What a drawing became."""

    images: Images
    """uint8 [n, r, r, 3]."""
    times: tuple[int, ...]
    """Noise levels, 1..T, that the shown states were denoised from."""
    states: Images
    """uint8 [strip, len(times), r, r, 3]: x_t."""
    predictions: Images
    """uint8 [strip, len(times), r, r, 3]: x_0 as predicted from x_t."""


def pick_inputs(models: Models, count: int) -> SampleInputs:
    """`count` readable images, evenly spaced over the test split (fewer, if it has fewer)."""
    config = models.config
    reader = models.reader[config.evaluation.test_split]
    ends = np.cumsum(reader.groups)
    total = int(ends[-1])
    chosen: dict[int, EvaluationViews] = {}
    for place in range(min(count, total)):
        for key in range(place * total // count, total):
            if key in chosen:
                continue
            group = int(np.searchsorted(ends, key, side="right"))
            row = key - int(ends[group]) + reader.groups[group]
            seen = central_views(reader.group(group, ["image", *pose_columns(config)]).slice(row, 1), config)
            if seen.ok.all():
                chosen[key] = seen
                break
    if not chosen:
        got = f"split {config.evaluation.test_split} without a readable image"
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
def draw(models: Models, drawing: SampleJob) -> SampleOutput:
    """The work of an actor: encode the sources, denoise from addressed noise."""
    inputs, model, how = drawing.inputs, models.method, models.config.sampling
    keys, side = inputs.keys, inputs.target.shape[1]

    def noise(step: int) -> Tensor:
        return addressed_noise(models.config.seed, keys, drawing.noise, step, side).to(models.device)

    sources = inputs.sources(models.device)
    pose = None if inputs.pose is None else torch.from_numpy(inputs.pose).to(models.device)
    plan: list[ReverseStep] = []
    if isinstance(model, DiffusionMethod):
        abar = model.process.abar
        plan = reverse_steps(abar, method=how.method, steps=how.steps, variance=how.variance, eta=how.eta)
    keep = _kept(model, how, len(keys), models.device)
    conditions = [
        model.condition(each, pose, keep, None) for each in (_apart(sources) if how.stochastic else [sources])
    ]
    without = model.unguided(sources, pose, how.guide, how.guided_sections, keep)
    recipe = Recipe(
        conditions=conditions,
        without=without,
        w=drawing.guidance,
        plan=plan,
        noise=lambda i: noise(i + 1),
        choose=lambda t: mix64(models.config.seed, PURPOSE, t) % len(conditions),
    )
    shown = _spaced(len(plan), STRIP_STEPS)
    states, predictions, times = [], [], []
    x = noise(0)
    for number, step in enumerate(model.sample(recipe, x)):
        if drawing.strip and number in shown:
            states.append(to_uint8(x[: drawing.strip]).cpu())
            predictions.append(to_uint8(step.x0[: drawing.strip]).cpu())
            times.append(step.t + 1)
        x = step.x
    strips = [
        torch.stack(frames, dim=1).numpy() if frames else np.zeros(0, np.uint8) for frames in (states, predictions)
    ]
    return SampleOutput(to_uint8(x).cpu().numpy(), tuple(times), *strips)


def _kept(model: Method, how: Sampling, rows: int, device: torch.device) -> Tensor | None:
    """Sections of z that are used, bool [rows, sections]; none: all."""
    if not how.masked_sections:
        return None
    keep = torch.ones(rows, model.sections, dtype=torch.bool, device=device)
    keep[:, list(how.masked_sections)] = False
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


def choose(workers: Pool, count: int) -> SampleInputs:
    """`pick_inputs` by one worker."""
    return workers.call(pick_inputs, count)


def sample_all(workers: Pool, drawings: Sequence[SampleJob], say: Say) -> list[SampleOutput]:
    """Each drawing, by all workers in pieces of a few images."""
    progress = Progress(say, "samples", "images", units=lambda piece: len(piece.inputs.keys))
    return [
        replace(parts[0], images=np.concatenate([part.images for part in parts]))
        for parts in workers.map_split(draw, drawings, _cut, progress)
    ]


def _cut(drawing: SampleJob) -> list[SampleJob]:
    starts = range(0, len(drawing.inputs.keys), CHUNK)
    return [replace(drawing, inputs=drawing.inputs.rows(slice(at, at + CHUNK))) for at in starts]
