"""The data set and the run of the tests of evaluation, and models of every method without training."""

from tests.evaluation.conftest import small, small_set, solids

__all__ = ["small", "small_set", "solids"]
