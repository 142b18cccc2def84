"""Masks of poses drawn apart: how often, for whom, and which network takes which."""

import math

import pytest
import torch
from torch import Tensor

from soda_dist.models.layers import addressed, number_modules
from soda_dist.models.pose_masks import SeparatePoseMasks, keep_of
from soda_dist.training.build import build_objective
from tests.models.methods import batch_of, config_of, model_of

COUNT, RATE = 6000, 0.2


def drawn(seeds: Tensor, keep: Tensor | None = None) -> Tensor:
    masks = SeparatePoseMasks(RATE)
    number_modules(masks)
    with addressed(seeds):
        return masks(torch.ones(len(seeds), dtype=torch.bool) if keep is None else keep)


def test_both_masks_have_the_rate_and_are_independent() -> None:
    keep = drawn(torch.arange(COUNT))
    assert keep.dtype == torch.bool and keep.shape == (COUNT, 2)
    for hidden, rate in ((~keep[:, 0], RATE), (~keep[:, 1], RATE), ((~keep).all(1), RATE**2)):
        assert float(hidden.double().mean()) == pytest.approx(rate, abs=4 * math.sqrt(rate * (1 - rate) / COUNT))


def test_masks_belong_to_their_samples_and_add_to_the_others() -> None:
    whole = drawn(torch.arange(64))
    assert torch.equal(drawn(torch.arange(40, 64)), whole[40:])
    others = torch.arange(64) % 3 > 0
    assert torch.equal(drawn(torch.arange(64), others), whole & others[:, None])
    evaluated = SeparatePoseMasks(RATE).eval()
    assert torch.equal(evaluated(others), others)


def test_the_mask_of_a_view() -> None:
    keep = torch.tensor([[True, True], [True, False], [False, True], [False, False]])
    assert [keep_of(keep, view).tolist() for view in ("sources", "target", "both")] == [
        [True, True, False, False], [True, False, True, False], [True, False, False, False],
    ]  # fmt: skip
    for view in ("sources", "target", "both"):
        assert keep_of(None, view) is None and torch.equal(keep_of(keep[:, 0], view), keep[:, 0])


@pytest.mark.parametrize("name", ["rays", "pixels", "encdec with rays", "palette with rays", "a vector"])
def test_each_network_takes_the_mask_of_its_view(name: str) -> None:
    """Interventions: a pose that is masked changes nothing, the other one still does; a vector has both or none."""
    vector = name == "a vector"
    more = {"pose": {"conditioning": "absolute"}} if vector else {}
    model = model_of(name, **more).eval()
    batch, draws = batch_of(config_of(name, **more))
    turned = batch._replace(pose=batch.pose.flip(0))
    moved = batch._replace(sources=batch.sources._replace(poses=batch.sources.poses.flip(0)))
    grids = getattr(getattr(model, "encoder", None), "pose", None) is not None
    with torch.no_grad():
        for column, hears in ((0, {"source": False, "target": not vector}), (1, {"source": not vector or grids,
                                                                                "target": False})):  # fmt: skip
            keep = torch.ones(4, 2, dtype=torch.bool)
            keep[:, column] = False
            masked = {**draws, "keep": None, "pose_keep": keep}
            plain = model.loss(batch, **masked)
            heard = {"source": moved, "target": turned}
            for view, other in heard.items():
                assert torch.allclose(model.loss(other, **masked), plain, atol=1e-6) != hears[view], (column, view)


def test_the_configuration_chooses_who_draws() -> None:
    together, separate = (build_objective(config_of("rays", pose={"masks": each})) for each in ("together", "separate"))
    assert together.mask_rates[2] == 0.2 and together.model.pose_masks is None
    assert separate.mask_rates[2] == 0 and separate.model.pose_masks.draw.rate == 0.2
    assert separate.mask_rates[:2] == together.mask_rates[:2]


def test_training_draws_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss sees both columns, other ones for another sample, and the same again."""
    config = config_of("rays", pose={"masks": "separate", "mask_rate": 0.5})
    model = model_of("rays", pose={"masks": "separate", "mask_rate": 0.5})
    batch, draws = batch_of(config, 16)
    seen: list[Tensor] = []
    condition = model.condition
    monkeypatch.setattr(model, "condition", lambda *args: (seen.append(args[3]), condition(*args))[1])
    for first in (0, 0, 100):
        with addressed(torch.arange(first, first + 16)):
            model.loss(batch, **{**draws, "pose_keep": torch.ones(16, dtype=torch.bool)})
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])
    assert bool(seen[0].any(0).all()) and not bool(seen[0].all(0).any()) and not torch.equal(*seen[0].unbind(1))
