"""A prepared data set and a trained run that all tests of evaluation read, and the shared Ray cluster."""

from pathlib import Path

import pytest

from tests.evaluation.small_run import EVALUATION, small_data, train
from tests.ray_cluster import cluster, until_the_end
from tests.tiny import tiny_config

__all__ = ["cluster", "until_the_end"]


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/ with the label in the images' colour, and run/ with checkpoints at 3 and 6: to be read, not written."""
    path = tmp_path_factory.mktemp("small")
    small_data(path / "data")
    train(str(path / "run"), tiny_config(evaluation=EVALUATION))
    return path
