"""Central views in the sizes of source and target; noise that belongs to a key alone."""

from pathlib import Path

import numpy as np
import pytest
import torch

from soda_dist.evaluation.views import addressed_noise, central_views
from soda_dist.evaluation.worker import readers
from tests.tiny import tiny_config


@pytest.mark.parametrize("target_size", [16, 8])
def test_central_views_are_of_each_size_and_zeros_where_unreadable(small: Path, target_size: int) -> None:
    config = tiny_config(data={"target_size": target_size}, denoiser={"attention_resolutions": (8,)})
    table = readers(str(small / "data"), config)["test"].group(0, ["image"])
    seen = central_views(table, config)
    assert seen.source.shape == (10, 16, 16, 3) and seen.target.shape == (10, target_size, target_size, 3)
    assert seen.ok.tolist() == [False, *[True] * 9] and not seen.source[0].any() and not seen.target[0].any()
    assert seen.source[1:].any((1, 2, 3)).all() and seen.target[1:].any((1, 2, 3)).all()
    if target_size == 16:
        assert (seen.source == seen.target).all()
    else:
        shrunk = seen.source.reshape(10, 8, 2, 8, 2, 3).mean((2, 4))
        assert np.abs(seen.target - shrunk).mean() < 10, "the same square"
    bare = central_views(table, config, target=False)
    assert len(bare.target) == 0 and (bare.source == seen.source).all() and bare.pose is None
    part = seen.rows(slice(2, 5))
    assert (part.source == seen.source[2:5]).all() and (part.ok == seen.ok[2:5]).all() and part.pose is None


def test_noise_is_a_function_of_key_seed_purpose_and_step() -> None:
    whole = addressed_noise(0, np.arange(40), 1, 2, 16)
    assert whole.shape == (40, 3, 16, 16) and whole.dtype == torch.float32
    assert torch.equal(addressed_noise(0, np.array([7, 3]), 1, 2, 16), whole[[7, 3]])
    for other in ((1, 1, 2), (0, 2, 2), (0, 1, 3)):
        seed, noise, step = other
        assert not torch.equal(addressed_noise(seed, np.arange(2), noise, step, 16), whole[:2])
    assert abs(float(whole.mean())) < 0.03 and abs(float(whole.std()) - 1) < 0.03
    flat = whole.flatten(1)
    assert float((torch.corrcoef(flat) - torch.eye(40)).abs().max()) < 0.2, "no two images share noise"
