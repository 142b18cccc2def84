"""Schedules against closed forms, a float64 loop of plain Python, and diffusers."""

import math

import pytest
import torch

from soda_dist.diffusion.schedules import alpha_bar
from soda_dist.errors import UserError

NAMES = ("inverted", "cosine", "linear", "sigmoid")
S = 0.008


def curve(name, u):
    if name == "cosine":
        return math.cos((u + S) / (1 + S) * math.pi / 2) ** 2
    if name == "inverted":
        return 2 * (1 + S) / math.pi * math.acos(math.sqrt(u)) - S
    high, low = 1 / (1 + math.exp(-3)), 1 / (1 + math.exp(3))
    return (high - 1 / (1 + math.exp(3 - 6 * u))) / (high - low)


def reference(name, steps):
    abar, table = 1.0, []
    for t in range(1, steps + 1):
        if name == "linear":
            beta = (1e-4 + (0.02 - 1e-4) * (t - 1) / max(steps - 1, 1)) * 1000 / steps
        else:
            now, before = curve(name, t / steps), curve(name, (t - 1) / steps)
            beta = 1.0 if now <= 0 else 1 - now / before
        abar *= 1 - min(beta, 0.999)
        table.append(abar)
    return torch.tensor(table, dtype=torch.float64)


def log_snr(name):
    abar = alpha_bar(name, 1000)
    return torch.log(abar) - torch.log1p(-abar)


@pytest.mark.parametrize("steps", [10, 75, 1000, 4000])
@pytest.mark.parametrize("name", NAMES)
def test_table_equals_a_plain_loop(name, steps):
    torch.testing.assert_close(alpha_bar(name, steps), reference(name, steps), rtol=1e-9, atol=0)


def test_inverted_is_the_function_inverse_of_the_cosine_curve():
    abar = alpha_bar("inverted", 1000)
    u = torch.tensor([curve("cosine", float(a)) for a in abar[:-1]], dtype=torch.float64)
    torch.testing.assert_close(u, torch.arange(1, 1000, dtype=torch.float64) / 1000, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["inverted", "cosine", "sigmoid"])
def test_a_curve_that_ends_at_zero_or_below_ends_with_the_largest_beta(name):
    abar = alpha_bar(name, 1000)
    assert float(abar[-1] / abar[-2]) == pytest.approx(1 - 0.999, rel=1e-9)


def test_sigmoid_is_symmetric_about_the_middle():
    abar = alpha_bar("sigmoid", 1000)
    assert float(abar[499]) == pytest.approx(0.5, abs=1e-12)
    torch.testing.assert_close(abar[:-1] + abar[:-1].flip(0), torch.ones(999, dtype=torch.float64))


def test_linear_ends_equally_noisy_for_every_number_of_steps():
    ends = [float(alpha_bar("linear", steps)[-1]) for steps in (250, 1000, 4000, 100_000)]
    assert ends[1] == pytest.approx(4.0358e-5, rel=1e-4)
    assert max(ends) / min(ends) < 1.35


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 1000, 7000, 100_000])
@pytest.mark.parametrize("name", NAMES)
def test_tables_are_finite_positive_and_never_rise(name, steps):
    abar = alpha_bar(name, steps)
    assert abar.dtype == torch.float64
    assert abar.shape == (steps,)
    assert bool(torch.isfinite(abar).all())
    assert bool(((abar > 0) & (abar < 1)).all())
    betas = 1 - abar / torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
    assert bool((betas >= 0).all())
    assert float(betas.max()) <= 0.999 + 1e-12
    # What training reads: neither the signal nor the noise may vanish in float32.
    assert float(abar.sqrt().float().min()) > 0
    assert float((1 - abar).sqrt().float().min()) > 0


def test_steps_in_log_snr_are_at_medium_noise_for_inverted_and_at_the_ends_for_the_others():
    medium = {name: float((log_snr(name).abs() < 2).double().mean()) for name in NAMES}
    assert medium["inverted"] > 0.92
    assert max(medium["cosine"], medium["linear"], medium["sigmoid"]) < 0.57
    far = {name: float((log_snr(name).abs() > 3).double().mean()) for name in NAMES}
    assert far["inverted"] < 0.02
    assert min(far["cosine"], far["linear"], far["sigmoid"]) > 0.22
    for name in ("cosine", "linear"):
        assert float((log_snr(name) > 2).double().mean()) > 0.1
        assert float((log_snr(name) < -2).double().mean()) > 0.2


def test_density_over_abar_is_a_hump_for_inverted_and_a_trough_for_the_others():
    shares = {name: torch.histc(alpha_bar(name, 1000), bins=5, min=0, max=1) / 1000 for name in NAMES}
    assert int(shares["inverted"].argmax()) == 2
    assert float(shares["inverted"][2]) > 3 * float(shares["inverted"][[0, 4]].max())
    for name in ("cosine", "linear", "sigmoid"):
        inner, ends = shares[name][1:4], shares[name][[0, 4]]
        assert float(ends.min()) > float(inner.max())


@pytest.mark.parametrize(
    ("name", "steps", "field"), [("cubic", 10, "diffusion.schedule"), ("cosine", 0, "diffusion.steps")]
)
def test_wrong_input_is_the_users_error(name, steps, field):
    with pytest.raises(UserError) as caught:
        alpha_bar(name, steps)
    assert caught.value.field == field
