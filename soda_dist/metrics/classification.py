"""Accuracy and F1 of class scores, each with its standard error."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BOOTSTRAP_DRAWS = 200


@dataclass(frozen=True)
class Estimate:
    """A measured value and its standard error over the test images, both in [0, 1]."""

    value: float
    standard_error: float


@dataclass(frozen=True)
class Labelled:
    """Latents and the labels to predict from them.

    Attributes:
        latents: [N, D], any real dtype; metrics compute in float32.
        labels: int64 [N], class numbers from 0; or [N, A], 0 or 1 for each of A attributes.
    """

    latents: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Scores:
    """Named estimates, the headline first, and details of their computation."""

    estimates: Mapping[str, Estimate]
    details: Mapping[str, object]


def score(logits: Tensor, labels: Tensor, *, seed: int) -> dict[str, Estimate]:
    """Measure accuracy of classes (also top-5 for more than five) or F1 of binary attributes (section E.1).

    Classes also get macro F1, the mean over the classes that occur among labels or predictions.

    Args:
        logits: [N, C] for int64 labels [N]; [N, A, 2] for [N, A].
        seed: seed of the bootstrap for the standard error of F1.
    """
    predicted = logits.argmax(dim=-1)
    if labels.ndim == 1:
        ks = (1, 5) if logits.shape[1] > 5 else (1,)
        found = {f"top{k}": binomial(top_k(logits, labels, k), len(labels)) for k in ks}
        return {**found, "macro_f1": _f1_of_classes(predicted, labels, logits.shape[1], seed)}
    per_image = (predicted == labels).double().mean(dim=1)
    accuracy = Estimate(float(per_image.mean()), float(per_image.std(correction=0)) / len(labels) ** 0.5)
    f1 = Estimate(macro_f1(predicted, labels), _f1_error(predicted, labels, seed))
    return {"macro_f1": f1, "accuracy": accuracy}


def details_of(logits: Tensor, labels: Tensor) -> dict[str, list[float]]:
    """Return details beside `score`: for labels [N, A] the F1 of each attribute in order; empty for classes."""
    if labels.ndim == 1:
        return {}
    return {"f1_by_attribute": f1_by_attribute(logits.argmax(dim=-1), labels)}


def headline(logits: Tensor, labels: Tensor) -> float:
    """Return the value that ranks classifiers: top-1 accuracy, or macro F1 for attributes."""
    return headline_of(tally(logits, labels))


def tally(logits: Tensor, labels: Tensor) -> Tensor:
    """Count what `headline` needs, in float64; counts of several sets of rows can be summed.

    For classes hits and rows, [2]; for attributes hits, predicted positives and positives of each, [3, A].
    """
    if labels.ndim == 1:
        return torch.stack([_among_top(logits, labels, 1).sum(), labels.new_tensor(len(labels))]).double()
    return _f1_counts(logits.argmax(dim=-1), labels)


def headline_of(counts: Tensor) -> float:
    """Compute `headline` from the sum of tallies."""
    if counts.ndim == 1:
        return float(counts[0] / counts[1])
    return float(_f1(*counts).mean())


def top_k(logits: Tensor, labels: Tensor, k: int) -> float:
    """Return the share of rows of logits [N, C] whose label is among the `k` highest; ties go to the lower class.

    Raises:
        ValueError: `k` exceeds C.
    """
    if k > logits.shape[1]:
        raise ValueError(f"top_k: got k={k} for {logits.shape[1]} classes; allowed: at most {logits.shape[1]}")
    return float(_among_top(logits, labels, k).double().mean())


def _among_top(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    own = logits.gather(1, labels[:, None])
    classes = torch.arange(logits.shape[1], device=logits.device)
    ahead = (logits > own) | ((logits == own) & (classes < labels[:, None]))
    return ahead.sum(dim=1) < k


def macro_f1(predicted: Tensor, labels: Tensor) -> float:
    """Average the F1 of each attribute's positive class (section E.1).

    Takes int64 [N, A] of 0 and 1; an attribute without positives on both sides has F1 0.
    """
    return float(np.mean(f1_by_attribute(predicted, labels)))


def f1_by_attribute(predicted: Tensor, labels: Tensor) -> list[float]:
    """Compute the F1 of each attribute, A values; `macro_f1` is their mean."""
    return _f1(*_f1_counts(predicted, labels)).tolist()


def binomial(share: float, count: int) -> Estimate:
    """Return `share` of `count` independent rows with its binomial standard error, sqrt(p (1 - p) / n)."""
    return Estimate(share, (share * (1.0 - share) / count) ** 0.5)


def _f1_counts(predicted: Tensor, labels: Tensor) -> Tensor:
    """Count hits, predicted positives and positives: float64 [3, A]."""
    return torch.stack([(column > 0).double().sum(0) for column in (predicted * labels, predicted, labels)])


def _f1(hits: Tensor, predicted: Tensor, positives: Tensor) -> Tensor:
    """Compute 2 hits / (predicted + positives), 0 if both are 0; all are whole counts."""
    return 2 * hits / (predicted + positives).clamp(min=1.0)


def _draws(count: int, seed: int) -> Iterator[Tensor]:
    """Yield the multiplicity of each of `count` rows, float64 [count], for each draw of the bootstrap."""
    generator = np.random.default_rng([seed, 0xF1])
    for _ in range(BOOTSTRAP_DRAWS):
        yield torch.from_numpy(np.bincount(generator.integers(count, size=count), minlength=count)).double()


def _f1_error(predicted: Tensor, labels: Tensor, seed: int) -> float:
    """Return the standard deviation of macro F1 over bootstrap draws of the rows."""
    predicted, labels = predicted.cpu().double(), labels.cpu().double()
    values = []
    for weights in _draws(len(labels), seed):
        counts = (weights @ column for column in (predicted * labels, predicted, labels))
        values.append(float(_f1(*counts).mean()))
    return float(np.std(values))


def _f1_of_classes(predicted: Tensor, labels: Tensor, classes: int, seed: int) -> Estimate:
    predicted, labels = predicted.cpu(), labels.cpu()

    def mean(weights: Tensor) -> float:
        hits, claims, positives = (
            torch.bincount(column, weight, classes)
            for column, weight in ((labels, weights * (predicted == labels)), (predicted, weights), (labels, weights))
        )
        return float(_f1(hits, claims, positives)[claims + positives > 0].mean())

    values = [mean(weights) for weights in _draws(len(labels), seed)]
    return Estimate(mean(torch.ones(len(labels), dtype=torch.float64)), float(np.std(values)))
