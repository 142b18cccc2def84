"""The compiler takes a training step's objective as one graph."""

import pytest
import torch

from soda_dist.models.batch_norm import share_groups
from soda_dist.training.build import build_objective
from soda_dist.training.to_device import to_device
from tests.tiny import TINY, pairs_at, tiny_config

SMALL = {**TINY["denoiser"], "channel_multipliers": (1, 1)}
UNMASKED = {"layer_mask_rate": 0.0, "guidance_mask_rate": 0.0}
CASES = {
    "batch norm, two groups": {"encoder": {"norm": "batch"}, "train": {"norm_batch": 2}},
    "batch norm, shared": {"encoder": {"norm": "batch"}},
    "group norm": {},
    "encdec": {"method": "encdec", "denoiser": {**SMALL, **UNMASKED}},
    "palette": {"method": "palette", "denoiser": {**SMALL, "layer_mask_rate": 0.0}},
}
QUICK = ("batch norm, two groups",)


@pytest.mark.parametrize(
    "case", [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in CASES]
)
def test_the_objective_is_one_graph(case: str) -> None:
    """Random numbers, masks, dropout, both networks and the loss."""
    config = tiny_config(**{"denoiser": SMALL, **CASES[case]})
    objective = build_objective(config)
    if case == "batch norm, shared":
        share_groups(objective, lambda sums: sums)
    torch._dynamo.reset()
    found = torch._dynamo.explain(objective)(*to_device(pairs_at(config, 0, 4), torch.device("cpu")))
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons
