"""Attributes of latents: log-odds of the probe, and effects of moves."""

import numpy as np
import pytest
import torch

from soda_dist.evaluation.features.attributes import effects, log_odds
from soda_dist.metrics.probe import LinearProbe


@pytest.mark.parametrize("heads", [0, 3])
def test_log_odds_are_those_of_the_softmax(heads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    outputs, width = (6, 5) if heads else (4, 5)
    probe = LinearProbe(
        torch.zeros(width), torch.ones(width), torch.randn(outputs, width, generator=generator),
        torch.randn(outputs, generator=generator), heads, 0.1, {},
    )  # fmt: skip
    latents = torch.randn(7, width, generator=generator)
    p = probe.predict(latents).double().softmax(-1)
    p = p[:, :2, 1] if heads else p[:, :2]
    np.testing.assert_allclose(log_odds(probe, latents.numpy(), 2), torch.log(p / (1 - p)).numpy(), rtol=1e-5)


def test_effects_are_means_over_images_with_paired_changes() -> None:
    before = np.array([[0.0, 1.0, 5.0], [2.0, 1.0, 5.0]])
    after = np.array([[1.0, 2.0, 5.0], [5.0, 0.0, 9.0]])
    (row,) = effects(["a", "b", "c"], 0, before, {1.5: after})
    assert row["k"] == 1.5 and row["share"] == 1.0
    assert row["score"] == pytest.approx({"value": 3.0, "standard_error": 2.0})
    assert row["change"] == pytest.approx({"value": 2.0, "standard_error": 1.0})
    assert row["others"]["b"] == pytest.approx({"value": 0.0, "standard_error": 1.0})
    assert row["drift"] == pytest.approx({"value": 1.5, "standard_error": 1.0})
    assert row["probability"]["value"] == pytest.approx((1 / (1 + np.exp(-1)) + 1 / (1 + np.exp(-5))) / 2)
    assert effects(["a"], 0, before[:, :1], {1.0: after[:, :1]})[0]["drift"] is None
