"""Which layer of a denoiser, at which noise level, is read as its latents (section F.1): found on training images."""

from collections.abc import Sequence

import numpy as np

from soda_dist.config.schema import RunConfig
from soda_dist.errors import UserError
from soda_dist.evaluation.context import Context
from soda_dist.evaluation.features.extraction import collect
from soda_dist.evaluation.features.scoring import Task, fit_settings, measure
from soda_dist.evaluation.features.targets import Target
from soda_dist.evaluation.pieces import Features, Point
from soda_dist.evaluation.rows import drawn_rows
from soda_dist.parallel.pool import Pool
from soda_dist.parallel.progress import Progress, Say
from soda_dist.training.build import build_model

HELD_OUT = 5
"""One in this many of the search's images is held out."""


def needs_point(config: RunConfig) -> bool:
    """Whether latents are a denoiser's activations."""
    return config.method in ("unconditional", "palette") or config.evaluation.latents == "denoiser"


def candidates(config: RunConfig) -> list[Point]:
    """Layers times noise levels, in the order of running.

    Raises:
        UserError: a layer that the denoiser does not have.
    """
    a, last = config.evaluation.activations, config.diffusion.steps - 1
    names = build_model(config).get_submodule("denoiser").layer_names()  # type: ignore[operator]
    unknown = [layer for layer in a.layers if layer not in names]
    if unknown:
        raise UserError("evaluation.activations.layers", unknown[0], ", ".join(names), "name layers of the denoiser")
    return [Point(layer, round(level * last)) for layer in a.layers or names for level in a.noise_levels]


def find_point(context: Context, target: Target) -> tuple[Point, dict[str, float]]:
    """The candidate whose probe is best on held-out training images, and the accuracy of each by its text."""
    if target.name not in context.points:
        context.points[target.name] = _found(context, target)
    return context.points[target.name]


def _found(context: Context, target: Target) -> tuple[Point, dict[str, float]]:
    config, say = context.config, context.say
    points = tuple(candidates(config))
    if len(points) == 1:
        return points[0], {}
    pieces = context.pieces("train", points, config.evaluation.activations.search_images)
    features = collect(context.workers, context.latents(pieces[0].split, points), pieces, say)
    scores = _scores(context.workers, features, points, config, target, say)
    best = max(points, key=lambda point: scores[str(point)])
    say(f"latents are {best}: {scores[str(best)]:.1%} on {len(features) // HELD_OUT:,} held-out training images")
    return best, scores


def _scores(
    workers: Pool, features: Features, points: Sequence[Point], config: RunConfig, target: Target, say: Say
) -> dict[str, float]:
    held = np.zeros(len(features), bool)
    held[drawn_rows(len(features), max(1, len(features) // HELD_OUT), config.seed, features.split)] = True
    values = target.of(features)
    labels = (workers.share(values[~held]), workers.share(values[held]))
    settings = fit_settings(config, "probe")
    tasks = []
    for point in points:
        array = features.arrays[str(point)]
        arrays = (workers.share(array[~held]), workers.share(array[held]))
        tasks.append(Task("probe", str(point), arrays, labels, target.classes, config.seed, settings))
    found = workers.map(measure, tasks, Progress(say, "search of layer and noise level", "fits"))
    return {
        task.encoder: next(iter(scores["estimates"].values()))["value"]
        for task, scores in zip(tasks, found, strict=True)
    }
