"""Metrics on extracted features, those of each encoder by one worker."""

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from soda_dist.config.schema import RunConfig
from soda_dist.evaluation.features.targets import Target, check_neighbours
from soda_dist.evaluation.pieces import Features
from soda_dist.evaluation.worker import Models
from soda_dist.metrics import METRICS, Labelled, Scores
from soda_dist.parallel.pool import Pool
from soda_dist.parallel.progress import Progress, Say
from soda_dist.runs.results import ENCODERS

AROUND = ("passes", "crop_flip_rate", "workers")
"""Settings of the probe's rows and workers, which the metric itself does not take."""


def fit_settings(config: RunConfig, metric: str) -> dict[str, Any]:
    """Return the settings that the metric itself takes."""
    settings = getattr(config.evaluation, metric).model_dump(mode="json")
    return {name: value for name, value in settings.items() if name not in AROUND}


@dataclass(frozen=True)
class Task:
    """A piece of work: one metric on one encoder's features, which the pool shares."""

    metric: str
    encoder: str
    arrays: tuple[Any, Any]
    """Shared train and test, [N, D]."""
    labels: tuple[Any, Any]
    """Shared train and test, as of `Target.of`."""
    classes: int
    seed: int
    settings: dict[str, Any]


def measure(models: Models, task: Task) -> dict[str, Any]:
    """Compute a metric; a worker's job. Returns plain values for the result's JSON."""
    start = time.monotonic()
    arrays, labels = (
        [as_tensor(reference.get(), models.device) for reference in references]
        for references in (task.arrays, task.labels)
    )
    train, test = (Labelled(array, label) for array, label in zip(arrays, labels, strict=True))
    scores = METRICS[task.metric](train, test, classes=task.classes, seed=task.seed, **task.settings)
    return plain_values(scores, train.latents.shape[1], time.monotonic() - start)


def plain_values(scores: Scores, dimension: int, seconds: float) -> dict[str, Any]:
    """An encoder's scores for the result's JSON."""
    return {
        "estimates": {name: vars(estimate) for name, estimate in scores.estimates.items()},
        "details": dict(scores.details),
        "dimension": dimension,
        "seconds": seconds,
    }


def as_tensor(array: NDArray[Any], device: torch.device) -> Tensor:
    """A tensor over the shared, read-only array (on the CPU), or a copy of it on the device."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of a read-only array; nothing writes to it
        return torch.from_numpy(array).to(device)


def score_all(
    workers: Pool,
    metrics: Sequence[str],
    config: RunConfig,
    features: Sequence[Features],
    target: Target,
    say: Say,
) -> dict[str, dict[str, Any]]:
    """Each metric's part of its result: the headline of the trained encoder, and every encoder's scores."""
    if "knn" in metrics:
        check_neighbours(config, len(features[0]))
    labels = (workers.share(target.of(features[0])), workers.share(target.of(features[1])))
    tasks = []
    for encoder in (name for name in ENCODERS if name in features[0].arrays):
        arrays = (workers.share(features[0].arrays[encoder]), workers.share(features[1].arrays[encoder]))
        for metric in metrics:
            settings = fit_settings(config, metric)
            tasks.append(Task(metric, encoder, arrays, labels, target.classes, config.seed, settings))
    progress = Progress(say, f"{' and '.join(metrics)} of {len(features[0]):,} images", "fits")
    found: dict[str, dict[str, Any]] = {metric: {} for metric in metrics}
    for task, scores in zip(tasks, workers.map(measure, tasks, progress), strict=True):
        found[task.metric][task.encoder] = scores
    return {metric: result_of(metric, scores, config) for metric, scores in found.items()}


def result_of(metric: str, found: dict[str, dict[str, Any]], config: RunConfig) -> dict[str, Any]:
    """A metric's part of its result, from the scores of each encoder."""
    encoders = {encoder: found[encoder] for encoder in ENCODERS if encoder in found}
    name, headline = next(iter(encoders["trained"]["estimates"].items()))
    settings = getattr(config.evaluation, metric).model_dump(mode="json")
    return {"metric": name, **headline, "encoders": encoders, "settings": settings}
