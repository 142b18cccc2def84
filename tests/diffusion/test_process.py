"""The forward process against a float64 loop, and what a cast of the model may do to it."""

import copy
import math

import pytest
import torch
from torch import nn

from soda_dist.diffusion import GaussianProcess, alpha_bar
from soda_dist.errors import UserError


def test_noised_equals_the_closed_form_for_each_sample_with_its_own_t():
    generator = torch.Generator().manual_seed(0)
    abar = alpha_bar("linear", 1000)
    process = GaussianProcess(abar)
    x0 = torch.rand(5, 3, 4, 4, generator=generator) * 2 - 1
    eps = torch.randn(5, 3, 4, 4, generator=generator)
    t = torch.tensor([0, 999, 1, 500, 999])
    x_t = process.noised(x0, t, eps)
    assert x_t.dtype == torch.float32
    for b in range(5):
        a = float(abar[t[b]])
        expected = math.sqrt(a) * x0[b].double() + math.sqrt(1 - a) * eps[b].double()
        torch.testing.assert_close(x_t[b].double(), expected, rtol=0, atol=3e-7)


@pytest.mark.parametrize("shape", [(4,), (4, 7), (4, 3, 2, 2)])
def test_noised_takes_any_shape(shape):
    process = GaussianProcess(torch.tensor([0.81, 0.36], dtype=torch.float64))
    x_t = process.noised(torch.ones(shape), torch.tensor([0, 1, 1, 0]), torch.zeros(shape))
    for b, signal in enumerate((0.9, 0.6, 0.6, 0.9)):
        torch.testing.assert_close(x_t[b], torch.full(shape[1:], signal))


def test_the_smallest_noise_is_not_rounded_away():
    process = GaussianProcess(alpha_bar("linear", 1000))
    x_t = process.noised(torch.zeros(1), torch.tensor([0]), torch.ones(1))
    # 1 - abar in float32 would be off by 3e-4 here.
    assert float(x_t) == pytest.approx(math.sqrt(1e-4), rel=1e-6)


def test_a_cast_of_the_model_does_not_round_the_noise_levels():
    process = GaussianProcess(alpha_bar("inverted", 1000))
    before = copy.deepcopy(process)
    model = nn.Sequential(nn.Linear(2, 2), process).to(torch.bfloat16)
    assert model[0].weight.dtype == torch.bfloat16
    for name in ("abar", "sqrt_abar", "sqrt_one_minus_abar"):
        torch.testing.assert_close(getattr(process, name), getattr(before, name), rtol=0, atol=0)


def test_buffers_follow_the_device_and_the_table_does_not():
    process = GaussianProcess(alpha_bar("cosine", 10)).to("meta")
    assert process.sqrt_abar.device.type == process.sqrt_one_minus_abar.device.type == "meta"
    assert process.abar.device.type == "cpu"


def test_a_checkpoint_does_not_hold_the_schedule():
    assert GaussianProcess(alpha_bar("cosine", 10)).state_dict() == {}


def test_steps_is_the_length_of_the_table():
    assert GaussianProcess(alpha_bar("sigmoid", 17)).steps == 17


@pytest.mark.parametrize(
    "table",
    [
        torch.tensor([0.9, 0.5]),
        torch.tensor([[0.9, 0.5]], dtype=torch.float64),
        torch.tensor([], dtype=torch.float64),
        torch.tensor([0.9, 0.0], dtype=torch.float64),
        torch.tensor([1.0, 0.5], dtype=torch.float64),
        torch.tensor([0.9, math.nan], dtype=torch.float64),
        torch.tensor([0.5, 0.9], dtype=torch.float64),
    ],
    ids=["float32", "two axes", "empty", "zero", "one", "nan", "rising"],
)
def test_a_wrong_table_is_refused(table):
    with pytest.raises(UserError) as caught:
        GaussianProcess(table)
    assert caught.value.field == "abar"


@pytest.mark.parametrize("prediction", ["noise", "velocity"])
def test_what_a_network_should_say_gives_the_noise_back(prediction):
    generator = torch.Generator().manual_seed(1)
    process = GaussianProcess(alpha_bar("cosine", 1000), prediction)
    x0, eps = (torch.randn(6, 3, 2, 2, generator=generator) for _ in range(2))
    t = torch.tensor([0, 10, 300, 700, 990, 999])
    said = process.wanted(x0, t, eps)
    torch.testing.assert_close(process.noise_in(process.noised(x0, t, eps), t, said), eps, rtol=0, atol=1e-5)


def test_the_squared_error_of_velocity_is_that_of_its_noise_over_abar():
    generator = torch.Generator().manual_seed(2)
    abar = alpha_bar("cosine", 1000)
    process = GaussianProcess(abar, "velocity")
    x0, eps, wrong = (torch.randn(4, 3, 2, 2, generator=generator) for _ in range(3))
    t = torch.tensor([10, 300, 700, 900])
    x = process.noised(x0, t, eps)
    error = (wrong - process.wanted(x0, t, eps)).square().mean((1, 2, 3))
    implied = (process.noise_in(x, t, wrong) - eps).square().mean((1, 2, 3))
    torch.testing.assert_close(error, implied / abar[t].float(), rtol=1e-4, atol=0)


def test_velocity_is_the_derivative_along_the_circle():
    """v is the derivative of x_t by the angle whose cosine is sqrt(abar) (Salimans and Ho 2022, appendix D)."""
    angle, step = 0.7, 1e-3
    table = torch.tensor([math.cos(angle - step), math.cos(angle), math.cos(angle + step)], dtype=torch.float64) ** 2
    process = GaussianProcess(table, "velocity")
    x0, eps = torch.tensor([0.3]), torch.tensor([-1.2])
    before, after = (process.noised(x0, torch.tensor([i]), eps) for i in (0, 2))
    said = process.wanted(x0, torch.tensor([1]), eps)
    torch.testing.assert_close((after - before) / (2 * step), said, rtol=1e-3, atol=1e-3)


def test_an_unknown_prediction_is_refused():
    with pytest.raises(ValueError, match="prediction: got image; allowed: noise, velocity"):
        GaussianProcess(alpha_bar("cosine", 10), "image")
