"""The plan of every method: what it counts is what the model has."""

import pytest

from soda_dist.training.build import build_model
from soda_dist.training.plan import plan
from tests.models.methods import METHODS, config_of


@pytest.mark.parametrize("name", METHODS)
def test_parts_add_up_and_an_encoder_costs_something(name) -> None:
    config = config_of(name)
    facts, model = plan(config), build_model(config)
    counts = facts["parameters"]
    parts = sum(count for part, count in counts.items() if part not in ("total", "encoder_backbone"))
    assert counts["total"] == parts == sum(parameter.numel() for parameter in model.parameters())
    encodes = config.method in ("soda", "encdec")
    assert ("encoder_backbone" in counts) == encodes
    assert (facts["flops_per_pair"]["encoder"] > 0) == encodes and facts["flops_per_pair"]["denoiser"] > 0
    pairs = config.denoiser.conditioning == "layer_modulation" and config.method == "soda"
    assert bool(facts["modulated_layers"]) == pairs
