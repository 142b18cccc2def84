"""Metrics: tensors in, named estimates out. To add one, add a file here and a row in `METRICS`."""

from collections.abc import Callable
from typing import Final

from soda_dist.metrics import knn, probe
from soda_dist.metrics.classification import Estimate, Labelled, Scores

METRICS: Final[dict[str, Callable[..., Scores]]] = {"probe": probe.evaluate, "knn": knn.evaluate}
"""Called as metric(train, test, classes=, seed=, **settings of the metric)."""

__all__ = ["METRICS", "Estimate", "Labelled", "Scores"]
