"""Reconstructions and samples from latents, drawn by actors.

The noise of an image is a function of its key, so the number of actors decides nothing.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from soda_dist.config.schema import RunConfig, Sampling
from soda_dist.diffusion.sampling import ReverseStep, reverse_steps
from soda_dist.distributed.runtime.actor_pool import Crew
from soda_dist.distributed.runtime.cluster import Say
from soda_dist.distributed.runtime.farm import Progress
from soda_dist.errors import UserError
from soda_dist.evaluation.features.extraction import Models
from soda_dist.evaluation.views import PURPOSE, Centred, addressed_noise, centred, pose_columns
from soda_dist.metrics.pixels import psnr, ssim
from soda_dist.models.condition import Sources
from soda_dist.models.method import DiffusionMethod, Method, Recipe
from soda_dist.models.pixels import source_input, to_uint8
from soda_dist.plots.image_grid import image_grid
from soda_dist.training.randomness import mix64

GUIDANCE = (1.0, 2.0, 3.0)
"""Scales at which reconstructions are shown and measured: plain conditional sampling and the paper's range."""
CHUNK = 8
"""Images that an actor draws at a time."""
STRIP_IMAGES, STRIP_STEPS = 2, 8
FREE_COLUMNS = 4
"""Samples in a row of the sheet of samples without a source."""

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Subjects:
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

    def rows(self, at: slice) -> "Subjects":
        """Some of them."""
        return replace(self, **{name: part[at] for name, part in vars(self).items() if part is not None})

    def sources(self, device: torch.device) -> Sources:
        """As the encoder takes them."""
        images = torch.from_numpy(self.source).to(device)
        pose = None if self.source_pose is None else torch.from_numpy(self.source_pose).to(device)
        return Sources(source_input(images), torch.ones(images.shape[:2], dtype=torch.bool, device=device), pose)


@dataclass(frozen=True)
class Drawing:
    """A piece of work: samples of some subjects at one guidance scale and from one set of noise."""

    subjects: Subjects
    guidance: float
    noise: int
    """Number of the noise: equal numbers give an image equal noise, whatever the guidance."""
    strip: int
    """The first subjects whose intermediate states are returned too."""


@dataclass(frozen=True)
class Drawn:
    """What a drawing became."""

    images: Images
    """uint8 [n, r, r, 3]."""
    times: tuple[int, ...]
    """Noise levels, 1..T, that the shown states were denoised from."""
    states: Images
    """uint8 [strip, len(times), r, r, 3]: x_t."""
    predictions: Images
    """uint8 [strip, len(times), r, r, 3]: x_0 as predicted from x_t."""


def pick_subjects(models: Models, count: int) -> Subjects:
    """`count` readable images, evenly spaced over the test split (fewer, if it has fewer)."""
    config = models.config
    reader = models.reader[config.evaluation.test_split]
    ends = np.cumsum(reader.groups)
    total = int(ends[-1])
    chosen: dict[int, Centred] = {}
    for place in range(min(count, total)):
        for key in range(place * total // count, total):
            if key in chosen:
                continue
            group = int(np.searchsorted(ends, key, side="right"))
            row = key - int(ends[group]) + reader.groups[group]
            seen = centred(reader.group(group, ["image", *pose_columns(config)]).slice(row, 1), config)
            if seen.ok.all():
                chosen[key] = seen
                break
    if not chosen:
        got = f"split {config.evaluation.test_split} without a readable image"
        raise UserError("evaluation.test_split", got, "readable images", "choose another split")
    keys = sorted(chosen)
    found = [chosen[key] for key in keys]
    pose = None if found[0].pose is None else np.concatenate([each.pose for each in found])
    return Subjects(
        keys=np.array(keys, np.int64),
        source=np.stack([each.source for each in found]),
        source_pose=None if pose is None else pose[:, None],
        target=np.concatenate([each.target for each in found]),
        pose=pose,
    )


@torch.no_grad()
def draw(models: Models, drawing: Drawing) -> Drawn:
    """The work of an actor: encode the sources, denoise from addressed noise."""
    subjects, model, how = drawing.subjects, models.method, models.config.sampling
    keys, side = subjects.keys, subjects.target.shape[1]

    def noise(step: int) -> Tensor:
        return addressed_noise(models.config.seed, keys, drawing.noise, step, side).to(models.device)

    sources = subjects.sources(models.device)
    pose = None if subjects.pose is None else torch.from_numpy(subjects.pose).to(models.device)
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
    return Drawn(to_uint8(x).cpu().numpy(), tuple(times), *strips)


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


def choose(crew: Crew[int, Subjects], count: int) -> Subjects:
    """`pick_subjects` by one of the actors."""
    ((_, subjects),) = crew.share_out(pick_subjects, [count], lambda: None)
    return subjects


def draw_all(crew: Crew[Drawing, Drawn], drawings: list[Drawing], say: Say) -> list[Drawn]:
    """Each drawing, shared out over the actors in pieces of a few images."""
    pieces, owners = [], []
    for owner, drawing in enumerate(drawings):
        for start in range(0, len(drawing.subjects.keys), CHUNK):
            pieces.append(replace(drawing, subjects=drawing.subjects.rows(slice(start, start + CHUNK))))
            owners.append(owner)
    progress = Progress(say, "samples", "images", sum(len(d.subjects.keys) for d in drawings))
    done: dict[int, Drawn] = {}
    for number, drawn in crew.share_out(draw, pieces, progress.tick):
        done[number] = drawn
        progress.add(len(drawn.images))
    progress.close()
    whole = []
    for owner in range(len(drawings)):
        parts = [done[number] for number in range(len(pieces)) if owners[number] == owner]
        whole.append(replace(parts[0], images=np.concatenate([part.images for part in parts])))
    return whole


def likeness(images: Images, target: Images) -> dict[str, dict[str, float]]:
    """PSNR and SSIM of 8-bit images, mean and standard error over the images."""
    return {name: mean_of(values) for name, values in zip(("psnr", "ssim"), pixel_scores(images, target), strict=True)}


def pixel_scores(images: Images, target: Images) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """PSNR in dB and SSIM of each 8-bit image, float64 [n]."""
    one, other = (torch.tensor(each).permute(0, 3, 1, 2).double() / 255 for each in (images, target))
    return psnr(one, other).numpy(), ssim(one, other).numpy()


def mean_of(values: NDArray[np.float64]) -> dict[str, float]:
    """The mean with its standard error, for a result."""
    spread = math.sqrt(max(len(values) - 1, 1) * len(values))
    return {"value": float(values.mean()), "standard_error": float(np.linalg.norm(values - values.mean())) / spread}


def show(crew: Crew[Any, Any], config: RunConfig, say: Say) -> dict[str, bytes]:
    """Pictures of reconstructions by file name: a row for each of a few images."""
    subjects = choose(crew, config.evaluation.images)
    if config.method == "encdec":
        (drawn,) = draw_all(crew, [Drawing(subjects, 1.0, 0, 0)], say)
        rows = [list(row) for row in zip(subjects.target, drawn.images, strict=True)]
        return {"reconstruction.png": image_grid(rows, ["source", "decoded"])}
    own = config.sampling.guidance
    strip = min(STRIP_IMAGES, len(subjects.keys))
    reconstructed = [Drawing(subjects, guidance, 0, 0) for guidance in GUIDANCE]
    *drawn_all, other, free = draw_all(
        crew, [*reconstructed, Drawing(subjects, own, 1, strip), Drawing(subjects, 0.0, 0, 0)], say
    )
    columns = ["source", *(f"guidance {w:g}" for w in GUIDANCE), f"other noise, guidance {own:g}", "no latent"]
    rows = [
        list(row)
        for row in zip(subjects.target, *(each.images for each in drawn_all), other.images, free.images, strict=True)
    ]
    return {"reconstruction.png": image_grid(rows, columns), "denoising.png": _strip(other)}


def free_samples(crew: Crew[Any, Any], config: RunConfig, say: Say) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Images without any source: facts for samples.json, and the pictures by file name."""
    subjects = choose(crew, config.evaluation.images)
    without = 1.0 if config.method == "unconditional" else 0.0  # there nothing is left out
    noises = [Drawing(subjects, without, 1 + number, 0) for number in range(FREE_COLUMNS)]
    strip = replace(noises[0], strip=min(STRIP_IMAGES, len(subjects.keys)))
    drawn = draw_all(crew, [strip, *noises[1:]], say)
    rows = [list(row) for row in zip(*(each.images for each in drawn), strict=True)]
    facts = {
        "counts": {"images": len(rows) * FREE_COLUMNS},
        "settings": config.sampling.model_dump(mode="json"),
    }
    pictures = {"samples.png": image_grid(rows, ["sample"] * FREE_COLUMNS)}
    return facts, pictures | ({"denoising.png": _strip(drawn[0])} if config.method == "unconditional" else {})


def _strip(drawn: Drawn) -> bytes:
    frames = zip(drawn.states, drawn.predictions, strict=True)
    rows = [list(row) for pair in frames for row in pair]
    names = ["state", "prediction"] * len(drawn.states)
    return image_grid(rows, [f"t = {time}" for time in drawn.times], names)
