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

from soda_dist.config.schema import RunConfig
from soda_dist.data.views import center_views
from soda_dist.diffusion.sampling import denoise_loop, guided, reverse_steps
from soda_dist.distributed.crew import Crew
from soda_dist.distributed.farm import Progress
from soda_dist.distributed.features import Models
from soda_dist.distributed.session import Say
from soda_dist.errors import UserError
from soda_dist.metrics.pixels import psnr, ssim
from soda_dist.models.pixels import source_input, to_uint8
from soda_dist.report.grids import image_grid
from soda_dist.training.randomness import mix64

GUIDANCE = (1.0, 2.0, 3.0)
"""Scales at which reconstructions are shown and measured: plain conditional sampling and the paper's range."""
PURPOSE = 0x5A3B1E
"""Sets the noise of samples apart from that of training."""
CHUNK = 8
"""Images that an actor draws at a time."""
STRIP_IMAGES, STRIP_STEPS = 2, 8

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Subjects:
    """The images that samples start from."""

    keys: NDArray[np.int64]
    """int64 [n], in the test split."""
    source: Images
    """uint8 [n, s, s, 3], the encoder's view."""
    target: Images
    """uint8 [n, r, r, 3], the denoiser's view of the same crop."""


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
    chosen: dict[int, tuple[Images, Images]] = {}
    for place in range(min(count, total)):
        for key in range(place * total // count, total):
            if key in chosen:
                continue
            group = int(np.searchsorted(ends, key, side="right"))
            row = key - int(ends[group]) + reader.groups[group]
            images = reader.group(group, ["image"]).column("image").slice(row, 1).to_pylist()
            views = [
                center_views(images, size=size, resize=config.data.eval_resize)
                for size in (config.data.source_size, config.data.target_size)
            ]
            if all(ok.all() for _, ok in views):
                chosen[key] = (views[0][0][0], views[1][0][0])
                break
    if not chosen:
        got = f"split {config.evaluation.test_split} without a readable image"
        raise UserError("evaluation.test_split", got, "readable images", "choose another split")
    keys = sorted(chosen)
    source, target = (np.stack([chosen[key][view] for key in keys]) for view in (0, 1))
    return Subjects(np.array(keys, np.int64), source, target)


@torch.no_grad()
def draw(models: Models, drawing: Drawing) -> Drawn:
    """The work of an actor: encode the sources, denoise from addressed noise."""
    how, soda, device = models.config.sampling, models.soda, models.device
    keys, side = drawing.subjects.keys, drawing.subjects.target.shape[1]
    z = soda.encode(source_input(torch.from_numpy(drawing.subjects.source).to(device)))

    def noise(step: int) -> Tensor:
        return addressed_noise(models.config.seed, keys, drawing.noise, step, side).to(device)

    plan = reverse_steps(soda.process.abar, method=how.method, steps=how.steps, variance=how.variance, eta=how.eta)
    shown = _spaced(len(plan), STRIP_STEPS)
    x = noise(0)
    states, predictions, times = [], [], []
    loop = denoise_loop(
        guided(soda.denoise, z, None, drawing.guidance), plan, x, clip=True, noise=lambda i: noise(i + 1)
    )
    for number, step in enumerate(loop):
        if drawing.strip and number in shown:
            states.append(to_uint8(x[: drawing.strip]).cpu())
            predictions.append(to_uint8(step.x0[: drawing.strip]).cpu())
            times.append(step.t + 1)
        x = step.x
    strips = [
        torch.stack(frames, dim=1).numpy() if frames else np.zeros(0, np.uint8) for frames in (states, predictions)
    ]
    return Drawn(to_uint8(x).cpu().numpy(), tuple(times), *strips)


def addressed_noise(seed: int, keys: NDArray[np.int64], noise: int, step: int, side: int) -> Tensor:
    """Standard normal float32 [n, 3, side, side] on the CPU, each image's a function of the arguments and its key."""
    draws = []
    for key in keys.tolist():
        generator = torch.Generator().manual_seed(mix64(seed, PURPOSE, key, noise, step) >> 1)
        draws.append(torch.randn(3, side, side, generator=generator))
    return torch.stack(draws)


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
            pieces.append(_part(drawing, slice(start, start + CHUNK)))
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


def _part(drawing: Drawing, rows: slice) -> Drawing:
    s = drawing.subjects
    return replace(drawing, subjects=Subjects(s.keys[rows], s.source[rows], s.target[rows]))


def likeness(images: Images, target: Images) -> dict[str, dict[str, float]]:
    """PSNR and SSIM of 8-bit reconstructions, mean and standard error over the images."""
    one, other = (torch.tensor(each).permute(0, 3, 1, 2).double() / 255 for each in (images, target))
    scores = {"psnr": psnr(one, other), "ssim": ssim(one, other)}
    spread = math.sqrt(max(len(images) - 1, 1) * len(images))
    return {
        name: {"value": float(values.mean()), "standard_error": float((values - values.mean()).norm()) / spread}
        for name, values in scores.items()
    }


def show(crew: Crew[Any, Any], config: RunConfig, say: Say) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The samples task: facts for reconstruction.json, and the pictures by file name."""
    subjects = choose(crew, config.evaluation.images)
    own = config.sampling.guidance
    reconstructed = [Drawing(subjects, guidance, 0, 0) for guidance in GUIDANCE]
    strip = min(STRIP_IMAGES, len(subjects.keys))
    *drawn, other, free = draw_all(
        crew, [*reconstructed, Drawing(subjects, own, 1, strip), Drawing(subjects, 0.0, 0, 0)], say
    )
    columns = ["source", *(f"guidance {w:g}" for w in GUIDANCE), f"other noise, guidance {own:g}", "no latent"]
    rows = list(zip(subjects.target, *(each.images for each in drawn), other.images, free.images, strict=True))
    pictures = {"samples.png": image_grid(rows, columns), "denoising.png": _strip(other)}
    guidance = {f"{w:g}": likeness(each.images, subjects.target) for w, each in zip(GUIDANCE, drawn, strict=True)}
    facts = {
        "split": config.evaluation.test_split,
        "images": len(subjects.keys),
        "keys": subjects.keys.tolist(),
        "guidance": guidance,
        "settings": config.sampling.model_dump(mode="json"),
    }
    return facts, pictures


def _strip(drawn: Drawn) -> bytes:
    frames = zip(drawn.states, drawn.predictions, strict=True)
    rows = [list(row) for pair in frames for row in pair]
    names = ["state", "prediction"] * len(drawn.states)
    return image_grid(rows, [f"t = {time}" for time in drawn.times], names)
