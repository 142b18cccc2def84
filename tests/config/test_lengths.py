"""Lengths of the paper's presets: the heading states the epochs, and no data set is seen absurdly often or rarely."""

import re
from pathlib import Path

import pytest

from soda_dist.config import load_config
from soda_dist.config.lengths import TRAINING_IMAGES, epochs
from soda_dist.config.load import PRESETS


@pytest.mark.parametrize("name", TRAINING_IMAGES)
def test_the_heading_states_the_length_of_the_preset(name: str) -> None:
    config, text = load_config(name), Path(str(PRESETS / f"{name}.yaml")).read_text()
    found = re.search(r"^# Length: ([\d,]+) steps of ([\d,]+) pairs, ([\d,]+) epochs of ([\d,]+) ", text, re.MULTILINE)
    assert found is not None
    steps, batch, stated, images = (int(number.replace(",", "")) for number in found.groups())
    assert (steps, batch, images) == (config.train.steps, config.train.global_batch, TRAINING_IMAGES[name])
    assert stated == round(steps * batch / images) == round(epochs(name, config) or 0)


def test_similar_sets_have_similar_lengths() -> None:
    length = {name: epochs(name, load_config(name)) for name in TRAINING_IMAGES}
    assert length["flowers102"] == pytest.approx(length["celebahq"], rel=0.01)
    for name in ("mpi3d_toy", "mpi3d_realistic", "mpi3d_real", "mpi3d_complex"):
        assert length[name] == pytest.approx(length["shapes3d"], rel=0.05)


def test_a_preset_of_other_data_has_no_epochs_of_the_paper() -> None:
    assert epochs("cifar10", load_config("cifar10")) is None
