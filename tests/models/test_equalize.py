"""Learning-rate equalization, and state dicts that do not show it."""

import copy
import math
from typing import Any

import pytest
import torch

from soda_dist.models.lr_equalization import load_plain_state_dict, plain_state_dict
from tests.models.small_encoder import VIT, encoded, encoder, images, perturb

KINDS: dict[str, dict[str, Any]] = {
    "batch": {"norm": "batch"},
    "group": {"posed": True},
    "vit": {**VIT, "posed": True},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def stored_name(name: str) -> str:
    """Where `equalize` keeps the parameter that was `name`."""
    *owner, leaf = name.split(".")
    return ".".join([*owner, "parametrizations", leaf, "original"])


@pytest.mark.parametrize(("ratio", "kind"), [(2.0, "batch"), (0.5, "group"), (3.0, "vit")])
def test_equalization_leaves_the_function_and_scales_the_gradients(ratio, kind):
    plain, equalized = encoder(**KINDS[kind]).double(), encoder(**KINDS[kind], lr_ratio=ratio).double()
    perturb(plain)
    load_plain_state_dict(equalized, plain_state_dict(plain))
    x = images(4).double()
    z, expected = encoded(equalized, x), encoded(plain, x)
    torch.testing.assert_close(z, expected, rtol=1e-9, atol=1e-9)
    z.square().sum().backward()
    expected.square().sum().backward()
    stored = dict(equalized.named_parameters())
    assert len(stored) == len(list(plain.parameters()))
    for name, parameter in plain.named_parameters():
        twin = stored[stored_name(name)]
        torch.testing.assert_close(twin * ratio, parameter, rtol=1e-12, atol=0)
        torch.testing.assert_close(twin.grad, parameter.grad * ratio, rtol=1e-6, atol=1e-9)


@every_kind
def test_equalization_divides_the_initial_deviation(kind):
    plain = dict(encoder(**KINDS[kind]).named_parameters())
    equalized = dict(encoder(**KINDS[kind], lr_ratio=2.0).named_parameters())
    assert equalized.keys() == {stored_name(name) for name in plain}
    for name, parameter in plain.items():
        assert torch.equal(equalized[stored_name(name)], parameter / 2)


def test_a_ratio_of_one_registers_nothing():
    assert not any("parametrizations" in name for name, _ in encoder().named_modules())


@pytest.mark.parametrize("ratio", [2.0, 3.0])
def test_adam_moves_the_weights_in_use_ratio_times_as_fast(ratio):
    """Against a reference run of the plain encoder with the learning rate times the ratio."""
    plain, equalized = encoder().double(), encoder(lr_ratio=ratio).double()
    load_plain_state_dict(equalized, plain_state_dict(plain))
    start = plain_state_dict(plain)
    runs = [(plain, 1e-3 * ratio), (equalized, 1e-3)]
    for model, lr in runs:
        optimizer = torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, 0.95), eps=1e-14)
        for step in range(3):
            optimizer.zero_grad()
            (model(images(4 + step).double()) - 1).square().sum().backward()
            optimizer.step()
    expected, got = plain_state_dict(plain), plain_state_dict(equalized)
    for name, before in start.items():
        moved = (expected[name] - before).abs().max()
        assert float(moved) == pytest.approx(3e-3 * ratio, rel=0.5), name
        torch.testing.assert_close(got[name], expected[name], rtol=0, atol=1e-4 * float(moved))


@pytest.mark.parametrize(
    ("ratio", "other", "kind"), [(2.0, 3.0, "batch"), (1.0, 2.0, "batch"), (2.0, 1.0, "group"), (2.0, 3.0, "vit")]
)
def test_plain_state_dicts_carry_the_function_between_ratios(ratio, other, kind):
    e, twin = encoder(**KINDS[kind], lr_ratio=ratio), encoder(seed=1, **KINDS[kind], lr_ratio=other)
    encoded(e, images(6))  # moves the running statistics
    state = plain_state_dict(e)
    assert list(state) == list(encoder(**KINDS[kind]).state_dict())
    storage = {name: parameter.data_ptr() for name, parameter in twin.named_parameters()}
    load_plain_state_dict(twin, state)
    assert storage == {name: parameter.data_ptr() for name, parameter in twin.named_parameters()}
    torch.testing.assert_close(encoded(twin.eval(), images(2)), encoded(e.eval(), images(2)), rtol=1e-5, atol=1e-6)
    before = state["projection.weight"].clone()
    with torch.no_grad():
        for parameter in e.parameters():
            parameter.zero_()
    assert torch.equal(state["projection.weight"], before)


def test_plain_state_dicts_of_another_encoder_are_refused_whole():
    e, state = encoder(lr_ratio=2.0), plain_state_dict(encoder(seed=1))
    before = plain_state_dict(e)
    missing = {name: tensor for name, tensor in state.items() if name != "projection.bias"}
    with pytest.raises(ValueError, match=r"missing \['projection.bias'\]"):
        load_plain_state_dict(e, missing)
    with pytest.raises(ValueError, match=r"unknown \['extra'\]"):
        load_plain_state_dict(e, {**state, "extra": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"projection.bias: got shape \[1\]; allowed: \[7\]"):
        load_plain_state_dict(e, {**state, "projection.bias": torch.zeros(1)})
    assert all(torch.equal(tensor, before[name]) for name, tensor in plain_state_dict(e).items())


@every_kind
def test_an_equalized_encoder_copies_and_runs_under_autocast(kind):
    e = encoder(**KINDS[kind], lr_ratio=2.0)
    twin, x = copy.deepcopy(e), images(6)
    expected = encoded(e, x)
    with torch.no_grad():
        for parameter in e.parameters():
            parameter.zero_()
    torch.testing.assert_close(encoded(twin, x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        low = encoded(twin, x)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), expected, rtol=0, atol=0.05 * float(expected.detach().abs().max()))
    low.float().square().sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in twin.parameters())


@pytest.mark.parametrize("ratio", [-1.0, 0.0, math.inf])
def test_ratios_without_meaning_are_refused(ratio):
    with pytest.raises(ValueError, match="lr_ratio"):
        encoder(lr_ratio=ratio)
