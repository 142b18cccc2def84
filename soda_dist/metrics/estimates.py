"""Means with their standard errors."""

import math

import numpy as np
from numpy.typing import NDArray


def mean_of(values: NDArray[np.float64]) -> dict[str, float]:
    """Return mean and standard error of a sample, as a dict for a result file."""
    spread = math.sqrt(max(len(values) - 1, 1) * len(values))
    return {"value": float(values.mean()), "standard_error": float(np.linalg.norm(values - values.mean())) / spread}
