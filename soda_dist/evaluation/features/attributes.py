"""Attributes in the latent space: directions by the linear probe (E.3), and the effect of moves along them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from soda_dist.data.shards import Manifest
from soda_dist.errors import UserError
from soda_dist.evaluation.features.targets import Target
from soda_dist.evaluation.worker import Models
from soda_dist.metrics.estimates import mean_of
from soda_dist.metrics.probe import LinearProbe, fit_probe
from soda_dist.models.latents import attribute_direction


@dataclass(frozen=True)
class Rows:
    """The rows that a probe is fitted on."""

    latents: NDArray[np.float32]
    """float32 [n, D]."""
    labels: NDArray[np.int64]
    """As of `Target.of`."""
    classes: int
    seed: int
    settings: dict[str, Any]
    """`evaluation.probe`."""


@dataclass(frozen=True)
class Attribute:
    """A direction of z along which an attribute or a class becomes likelier."""

    name: str
    direction: Tensor
    """Unit float32 [D]."""
    sigma: float
    """Standard deviation of the latents along it."""


def fit(models: Models, rows: Rows) -> LinearProbe:
    """Fit the probe; a worker's job. Its tensors are on the CPU."""
    latents, labels = (torch.tensor(part, device=models.device) for part in (rows.latents, rows.labels))
    probe = fit_probe(latents, labels, classes=rows.classes, seed=rows.seed, **rows.settings)
    parts = {name: getattr(probe, name).cpu() for name in ("mean", "variance", "weight", "bias")}
    return replace(probe, **parts)


def names_of(target: Target, manifest: Manifest, count: int) -> list[str]:
    """The first `count` attributes of a target, or values of its class or factor."""
    if target.kind == "attribute":
        return list(target.columns[:count])
    return list(manifest.labels[target.name].names[:count])


def attributes_of(probe: LinearProbe, names: Sequence[str], latents: NDArray[np.float32]) -> list[Attribute]:
    """The directions of the first attributes or classes.

    The mean of a softmax's rows is subtracted: it moves no probability.

    Args:
        names: as of `names_of`.
        latents: float32 [n, D], from which sigma is taken.

    Raises:
        UserError: z does not vary.
    """
    if not bool((probe.variance > 0).any()):
        raise UserError("--tasks", "latents of an encoder that gives every image the same z", "another step", "train")
    rows = probe.weight.unflatten(0, (max(probe.heads, 1), -1))
    rows = rows - rows.mean(1, keepdim=True)
    std = probe.variance.sqrt()
    found = []
    for number, name in enumerate(names):
        head, index = (number, 1) if probe.heads else (0, number)
        direction = attribute_direction(rows[head], index, std=std)
        sigma = float((latents @ direction.numpy()).astype(np.float64).std(ddof=1))
        found.append(Attribute(name, direction, sigma))
    return found


def log_odds(probe: LinearProbe, latents: NDArray[np.float32], count: int) -> NDArray[np.float64]:
    """log p / (1 - p) of the first `count` attributes or classes as the probe sees them: float64 [n, count]."""
    logits = probe.predict(torch.tensor(latents)).double()
    if probe.heads:
        return (logits[:, :count, 1] - logits[:, :count, 0]).numpy()
    others = torch.eye(logits.shape[1], dtype=torch.bool)[:count]
    rest = logits[:, None].masked_fill(others, -torch.inf).logsumexp(2)
    return (logits[:, :count] - rest).numpy()


def effects(
    names: Sequence[str], moved: int, before: NDArray[np.float64], after: dict[float, NDArray[np.float64]]
) -> list[dict[str, Any]]:
    """Score images that were moved along an attribute by k sigma, for each k.

    Args:
        names: of the columns.
        moved: the attribute's column.
        before: log-odds of the images drawn without a move, float64 [n, A].
        after: log-odds of the images drawn after the move, by k.

    Returns:
        For each k `score` (log-odds), `probability`, `share` (of images that have it, p > 1/2), `change` of the score,
        and for the `others` the change of theirs: means with standard errors over images. `drift`: each image's mean
        absolute change over the others; None without others.
    """
    found = []
    for k, scores in sorted(after.items()):
        own, change = scores[:, moved], scores - before
        rest = [column for column in range(len(names)) if column != moved]
        found.append(
            {
                "k": k,
                "score": mean_of(own),
                "probability": mean_of(1 / (1 + np.exp(-own))),
                "share": float((own > 0).mean()),
                "change": mean_of(change[:, moved]),
                "others": {names[column]: mean_of(change[:, column]) for column in rest},
                "drift": mean_of(np.abs(change[:, rest]).mean(1)) if rest else None,
            }
        )
    return found
