import math

import pytest

from soda_dist.config.sections import Optim
from soda_dist.training.schedule import learning_rate


def test_warm_up_rises_linearly_to_the_peak():
    optim = Optim(lr=1e-3, warmup_steps=4)
    assert [learning_rate(s, optim, 100) for s in range(5)] == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3])


def test_cosine_ends_at_the_fraction_and_halves_the_way_in_the_middle():
    optim = Optim(lr=1.0, warmup_steps=10, decay="cosine", final_lr_fraction=0.25)
    total = 111  # updates 10..110: a hundred intervals
    assert learning_rate(10, optim, total) == pytest.approx(1.0)
    assert learning_rate(60, optim, total) == pytest.approx(0.625)
    assert learning_rate(35, optim, total) == pytest.approx(0.25 + 0.75 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert learning_rate(110, optim, total) == pytest.approx(0.25)


def test_no_warm_up_starts_at_the_peak():
    assert learning_rate(0, Optim(lr=0.5, warmup_steps=0), 10) == 0.5
