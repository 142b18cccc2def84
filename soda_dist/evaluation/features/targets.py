"""The labels that latents are to predict."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from soda_dist.config.schema import RunConfig
from soda_dist.data.labels import choose_label
from soda_dist.data.shards import Manifest
from soda_dist.errors import UserError
from soda_dist.evaluation.pieces import Features


@dataclass(frozen=True)
class Target:
    """A class or a factor from one column, or binary attributes from one or more."""

    name: str
    kind: str
    columns: tuple[str, ...]
    classes: int

    def of(self, features: Features) -> NDArray[np.int64]:
        """Return the labels as the metrics take them: [N] of a class or factor, [N, A] of attributes."""
        labels = features.labels(self.columns)
        return labels if self.kind == "attribute" else labels[:, 0]

    def check(self, features: Features) -> None:
        """Raise a `UserError` for rows without a value, or values that the manifest does not name."""
        labels = features.labels(self.columns)
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= self.classes:
            got = f"{self.name} with values {low}..{high} in {features.split}"
            raise UserError(
                "evaluation.label", got, f"0..{self.classes - 1}, as named in the manifest", "choose another"
            )


def choose_target(manifest: Manifest, label: str | None) -> Target:
    """Choose the target called `label`, or the data set's main one; a `UserError` if it has none."""
    remedy = "name a label column, or leave out probe and knn"
    found = choose_label(manifest, label, field="evaluation.label", remedy=remedy)
    return Target(found.name, found.kind, found.columns, found.classes)


def check_neighbours(config: RunConfig, rows: int) -> None:
    """Raise a `UserError` for more neighbours than training rows."""
    k = config.evaluation.knn.k
    if k > rows:
        raise UserError("evaluation.knn.k", k, f"1..{rows}, the training images", "ask for fewer neighbours")


def majority(train: NDArray[np.int64], test: NDArray[np.int64]) -> float:
    """Accuracy of always predicting the most frequent training label on test labels [M, A]; mean over columns."""
    most = [np.bincount(column).argmax() for column in train.T]
    return float((test == np.array(most)).mean())
