"""Accuracy and F1 of class scores, each with its standard error."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.metrics import f1_score
from torch import Tensor

BOOTSTRAP_DRAWS = 200


@dataclass(frozen=True)
class Estimate:
    """A measured value and its standard error over the test images, both in [0, 1]."""

    value: float
    standard_error: float


@dataclass(frozen=True)
class Labelled:
    """Latents and what they should predict.

    Attributes:
        latents: [N, D], any real dtype; metrics compute in float32.
        labels: int64 [N], class numbers from 0; or [N, A], 0 or 1 for each of A attributes.
    """

    latents: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Scores:
    """Named estimates, the headline first, and facts about how they came about."""

    estimates: Mapping[str, Estimate]
    details: Mapping[str, object]


def score(logits: Tensor, labels: Tensor, *, seed: int) -> dict[str, Estimate]:
    """Section E.1: top-1 accuracy of classes (top-5 too where there are more than five), F1 of binary attributes.

    Args:
        logits: [N, C] for labels [N]; [N, A, 2] for labels [N, A].
        labels: int64.
        seed: of the bootstrap that gives F1 its standard error.
    """
    if labels.ndim == 1:
        ks = (1, 5) if logits.shape[1] > 5 else (1,)
        return {f"top{k}": binomial(top_k(logits, labels, k), len(labels)) for k in ks}
    predicted = logits.argmax(dim=-1)
    per_image = (predicted == labels).double().mean(dim=1)
    accuracy = Estimate(float(per_image.mean()), float(per_image.std(correction=0)) / len(labels) ** 0.5)
    f1 = Estimate(macro_f1(predicted, labels), _f1_error(predicted, labels, seed))
    return {"macro_f1": f1, "accuracy": accuracy}


def headline(logits: Tensor, labels: Tensor) -> float:
    """The value that a choice between classifiers goes by: top-1 accuracy, or macro F1 for attributes."""
    if labels.ndim == 1:
        return top_k(logits, labels, 1)
    return macro_f1(logits.argmax(dim=-1), labels)


def top_k(logits: Tensor, labels: Tensor, k: int) -> float:
    """Share of rows whose label is among the `k` highest logits; of equal logits the lower class comes first.

    Args:
        logits: [N, C].
        labels: int64 [N].

    Raises:
        ValueError: `k` exceeds the number of classes.
    """
    if k > logits.shape[1]:
        raise ValueError(f"top_k: got k={k} for {logits.shape[1]} classes")
    own = logits.gather(1, labels[:, None])
    classes = torch.arange(logits.shape[1], device=logits.device)
    ahead = (logits > own) | ((logits == own) & (classes < labels[:, None]))
    return float((ahead.sum(dim=1) < k).double().mean())


def macro_f1(predicted: Tensor, labels: Tensor) -> float:
    """Section E.1: F1 of each attribute's positive class, averaged; 0 where neither side has a positive.

    Args:
        predicted, labels: int64 [N, A], 0 or 1.
    """
    if labels.shape[1] == 1:
        return float(f1_score(labels[:, 0].cpu(), predicted[:, 0].cpu(), zero_division=0.0))
    return float(f1_score(labels.cpu(), predicted.cpu(), average="macro", zero_division=0.0))


def binomial(share: float, count: int) -> Estimate:
    """`share` of `count` independent rows with its binomial standard error, sqrt(p (1 - p) / n)."""
    return Estimate(share, (share * (1.0 - share) / count) ** 0.5)


def _f1_error(predicted: Tensor, labels: Tensor, seed: int) -> float:
    """Standard deviation of macro F1 over bootstrap draws of the rows."""
    predicted, labels = predicted.cpu().double(), labels.cpu().double()
    count = len(labels)
    generator = np.random.default_rng([seed, 0xF1])
    values = []
    for _ in range(BOOTSTRAP_DRAWS):
        weights = torch.from_numpy(np.bincount(generator.integers(count, size=count), minlength=count)).double()
        hits, claims, positives = (weights @ column for column in (predicted * labels, predicted, labels))
        values.append(float((2 * hits / (claims + positives).clamp(min=1.0)).mean()))
    return float(np.std(values))
