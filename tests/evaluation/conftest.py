"""A prepared data set and a trained run that all tests of evaluation read, and the shared Ray cluster."""

import shutil
from pathlib import Path

import pytest

from tests.evaluation.small_run import EVALUATION, small_data, train
from tests.learn.scenes import write_scenes
from tests.metrics.networks import write_alexnet, write_inception
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


@pytest.fixture(scope="module")
def place(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `small`, with a copy of its run that the module's tests evaluate."""
    path = tmp_path_factory.mktemp("place")
    (path / "data").symlink_to(small / "data")
    shutil.copytree(small / "run", path / "run")
    return path


@pytest.fixture(scope="session")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set of `small` alone, without a run: to be read, not written."""
    path = tmp_path_factory.mktemp("small_set")
    small_data(path)
    return path


@pytest.fixture(scope="session")
def solids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four objects in each split, seen by six cameras: to be read, not written."""
    path = tmp_path_factory.mktemp("solids")
    write_scenes(path, objects=4, test_objects=4, views=6, size=20)
    return path


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Test weights of Inception."""
    return write_inception(tmp_path_factory.mktemp("inception") / "inception.pth")


@pytest.fixture(scope="session")
def alexnet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Test weights of the trunk that LPIPS uses."""
    return write_alexnet(tmp_path_factory.mktemp("alexnet") / "alexnet.pth")
