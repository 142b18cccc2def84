"""Samplers against the paper's formula and their own promises; guidance and alternation against their formulas."""

import math
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from soda_dist.diffusion import (
    GaussianProcess,
    alpha_bar,
    alternating,
    denoise_loop,
    guided,
    reverse_steps,
    sample,
)
from soda_dist.diffusion.sampling import kept_steps
from soda_dist.errors import UserError

SHAPE = (2, 3, 4, 4)


def network(x, t):
    """A nonlinear stand-in for a denoiser that depends on x and t."""
    level = t.view(-1, 1, 1, 1).to(x.dtype) / 100
    return torch.tanh(1.5 * x + 0.3 * torch.cos(level)) + 0.1 * x.flip(-1)


def start(dtype=torch.float64):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), dtype=dtype)


def drawn(seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return lambda _: torch.randn(SHAPE, generator=generator, dtype=dtype)


def run(predict, process, x_T, **changes):
    options = {
        "method": "ddpm",
        "steps": process.steps,
        "variance": "small",
        "eta": 0.0,
        "clip": False,
        "noise": drawn(2),
    }
    return sample(predict, process, x_T, **(options | changes))


@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm_equals_the_reverse_step_of_the_paper(variance):
    process = GaussianProcess(alpha_bar("inverted", 50))
    abar = [1.0, *process.abar.tolist()]
    x, noise = start(), drawn(2)
    for t in range(50, 0, -1):
        alpha = abar[t] / abar[t - 1]
        eps = network(x, torch.full((2,), t - 1))
        x = (x - (1 - alpha) / math.sqrt(1 - abar[t]) * eps) / math.sqrt(alpha)
        if t > 1:
            small = (1 - abar[t - 1]) / (1 - abar[t]) * (1 - alpha)
            x = x + math.sqrt(small if variance == "small" else 1 - alpha) * noise(0)
    torch.testing.assert_close(run(network, process, start(), variance=variance), x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [1000, 30])
def test_ddim_with_all_its_noise_is_ddpm_with_the_small_variance(steps):
    process = GaussianProcess(alpha_bar("inverted", 1000))
    ddim = run(network, process, start(), method="ddim", eta=1.0, steps=steps)
    torch.testing.assert_close(ddim, run(network, process, start(), steps=steps), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("total", [1000, 999, 50])
def test_kept_steps_are_even_and_hold_both_ends(total):
    for steps in range(2, total + 1):
        kept = kept_steps(total, steps)
        assert kept == [round(Fraction(i * (total - 1), steps - 1)) for i in range(steps)]
        assert (kept[0], kept[-1], len(set(kept))) == (0, total - 1, steps)
    assert kept_steps(total, 1) == [total - 1]


def test_betas_of_the_kept_steps_come_from_their_abar():
    abar = alpha_bar("cosine", 1000)
    plan = reverse_steps(abar, method="ddpm", steps=5, variance="large", eta=0.0)
    assert [step.t for step in plan] == [999, 749, 500, 250, 0]
    assert [step.abar for step in plan] == [float(abar[step.t]) for step in plan]
    betas = [1 - now.abar / before.abar for now, before in pairwise(plan)]
    assert [step.noise_scale for step in plan] == pytest.approx([*(math.sqrt(beta) for beta in betas), 0.0])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"variance": "small"}, [0, 1, 2, 3]),
        ({"variance": "large"}, [0, 1, 2, 3]),
        ({"method": "ddim", "eta": 0.5}, [0, 1, 2, 3]),
        ({"method": "ddim", "eta": 0.0}, []),
    ],
)
def test_noise_is_asked_for_by_the_number_of_the_step_and_not_at_the_last(options, expected):
    asked = []

    def noise(i):
        asked.append(i)
        return torch.zeros(SHAPE, dtype=torch.float64)

    run(network, GaussianProcess(alpha_bar("inverted", 20)), start(), steps=5, noise=noise, **options)
    assert asked == expected


@pytest.mark.parametrize(
    ("schedule", "expected"), [("linear", [999, 749, 500, 250, 0]), ("inverted", [749, 749, 500, 250, 0])]
)
def test_predict_sees_table_indices_downwards_and_a_blind_step_asks_where_it_goes_to(schedule, expected):
    seen = []

    def predict(x, t):
        assert t.dtype == torch.int64
        assert t.shape == (2,)
        seen.append(sorted(set(t.tolist())))
        return network(x, t)

    run(predict, GaussianProcess(alpha_bar(schedule, 1000)), start(), steps=5)
    assert seen == [[level] for level in expected]


@pytest.mark.parametrize("steps", [20, 100, 250])
@pytest.mark.parametrize("method", ["ddpm", "ddim"])
def test_a_small_error_of_eps_stays_small_at_the_inverted_schedule(method, steps):
    """A point as data and an eps that is off by 0.01, which at an abar of 1e-5 is an x0 that is off by 3."""
    process, point = GaussianProcess(alpha_bar("inverted", 1000)), 0.3
    wrong = torch.where(start() > 0, 0.01, -0.01)

    def predict(x, t):
        abar = float(process.abar[t[0]])
        return (x - math.sqrt(abar) * point) / math.sqrt(1 - abar) + wrong

    plan = reverse_steps(process.abar, method=method, steps=steps, variance="small", eta=0.0)
    first = next(denoise_loop(predict, plan, start(), clip=True, noise=drawn(2)))
    assert float((first.x0 - point).abs().max()) < 0.06


def test_a_whole_chain_is_never_blind():
    for schedule in ("inverted", "cosine", "linear", "sigmoid"):
        plan = reverse_steps(alpha_bar(schedule, 1000), method="ddpm", steps=1000, variance="small", eta=0.0)
        assert [(step.read_t, step.read_abar) for step in plan] == [(step.t, step.abar) for step in plan]


@pytest.mark.parametrize("clip", [False, True])
def test_the_loop_reports_the_clean_image_predicted_at_each_step(clip):
    process = GaussianProcess(alpha_bar("linear", 1000))
    plan = reverse_steps(process.abar, method="ddpm", steps=12, variance="small", eta=0.0)
    x, states = start(), list(denoise_loop(network, plan, start(), clip=clip, noise=drawn(2)))
    assert [state.t for state in states] == [step.t for step in plan]
    for state in states:
        a = float(process.abar[state.t])
        x0 = (x - math.sqrt(1 - a) * network(x, torch.full((2,), state.t))) / math.sqrt(a)
        assert bool((x0.abs() > 1).any()) or state.t == 0
        torch.testing.assert_close(state.x0, x0.clamp(-1, 1) if clip else x0)
        x = state.x
    torch.testing.assert_close(states[-1].x, states[-1].x0)
    torch.testing.assert_close(run(network, process, start(), steps=12, clip=clip), x, rtol=0, atol=0)


def test_float32_stays_close_to_float64_where_the_signal_is_almost_gone():
    process = GaussianProcess(alpha_bar("cosine", 1000))
    options = {"steps": 100, "clip": True}
    single = run(network, process, start().float(), noise=lambda i: drawn(i)(i).float(), **options)
    double = run(network, process, start(), noise=lambda i: drawn(i)(i), **options)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-4)


def test_samples_carry_no_gradient():
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    x = run(lambda x, t: weight * network(x, t), GaussianProcess(alpha_bar("inverted", 4)), start())
    assert not x.requires_grad


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"steps": 0}, "sampling.steps"),
        ({"steps": 11}, "sampling.steps"),
        ({"eta": 1.5, "method": "ddim"}, "sampling.eta"),
        ({"eta": math.nan, "method": "ddim"}, "sampling.eta"),
        ({"method": "euler"}, "sampling.method"),
        ({"variance": "learned"}, "sampling.variance"),
    ],
)
def test_wrong_options_are_the_users_error(changes, field):
    with pytest.raises(UserError) as caught:
        run(network, GaussianProcess(alpha_bar("inverted", 10)), start(), **changes)
    assert caught.value.field == field


class Told(NamedTuple):
    """A condition of two parts, either of which a sample may go without; `keep` may be missing for the whole batch."""

    z: Tensor
    """[B, 4]."""
    pose: Tensor
    """[B, 1]."""
    keep: Tensor | None = None
    """bool [B, 4]."""


def join(one, other):
    return Told(*(None if a is None else torch.cat([a, b]) for a, b in zip(one, other, strict=True)))


class Recorder:
    """A denoiser of [B, 4] images that does not add up its condition's parts; it keeps what it was given."""

    def __init__(self):
        self.calls = []

    def __call__(self, x, t, told):
        self.calls.append((x, t, told))
        seen = told.z if told.keep is None else told.z * told.keep
        return torch.sin(x) * t.view(-1, 1) + seen**2 + 0.5 * seen + torch.cos(told.pose + seen)


def slow(x, t, z, pose):
    """What `Recorder` gives for one element."""
    return math.sin(x) * t + z**2 + 0.5 * z + math.cos(pose + z)


def guidance_inputs(with_keep):
    """x, t, the condition, and the same with its latent masked to zeros."""
    generator = torch.Generator().manual_seed(3)
    x, z, pose = (torch.randn(3, size, generator=generator) for size in (4, 4, 1))
    keep = torch.rand(3, 4, generator=generator) > 0.4 if with_keep else None
    told = Told(z, pose, keep)
    return x, torch.tensor([1, 5, 9]), told, told._replace(z=0 * z, keep=None if keep is None else keep & False)


@pytest.mark.parametrize("with_keep", [True, False])
@pytest.mark.parametrize("dropped", ["latent", "pose", "both"])
@pytest.mark.parametrize("w", [0.0, 0.5, 1.0, 2.0, 3.0])
def test_guidance_equals_its_formula_where_all_of_the_condition_or_a_part_of_it_is_dropped(w, dropped, with_keep):
    x, t, told, no_latent = guidance_inputs(with_keep)
    without = told if dropped == "pose" else no_latent
    if dropped != "latent":
        without = without._replace(pose=0 * told.pose)
    eps = guided(Recorder(), told, without, w, join=join)(x, t)
    for b in range(3):
        for k in range(4):
            kept = 1.0 if told.keep is None else float(told.keep[b, k])
            element, level, z, pose = float(x[b, k]), int(t[b]), kept * float(told.z[b, k]), float(told.pose[b])
            conditional = slow(element, level, z, pose)
            plain = slow(element, level, z if dropped == "pose" else 0.0, pose if dropped == "latent" else 0.0)
            assert float(eps[b, k]) == pytest.approx(plain + w * (conditional - plain), abs=1e-5)


@pytest.mark.parametrize(("w", "rows"), [(0.0, 3), (1.0, 3), (2.0, 6)])
def test_guidance_calls_the_denoiser_once_with_no_branch_that_it_does_not_need(w, rows):
    x, t, told, without = guidance_inputs(True)
    denoise = Recorder()
    guided(denoise, told, without, w, join=join)(x, t)
    ((x, t, given),) = denoise.calls
    assert [len(tensor) for tensor in (x, t, *given)] == [rows] * 5


def test_a_single_branch_is_given_its_condition_as_it_is_and_nothing_is_joined():
    x, t, told, without = guidance_inputs(False)
    denoise = Recorder()
    for w in (0, 1):
        guided(denoise, told, without, w, join=None)(x, t)
    assert denoise.calls[0][2] is without and denoise.calls[1][2] is told
    assert all(call[0] is x and call[1] is t for call in denoise.calls)


@pytest.mark.parametrize("dropped", ["latent", "pose"])
def test_the_branch_without_comes_first_and_both_branches_see_the_part_that_is_not_dropped(dropped):
    x, t, told, without = guidance_inputs(True)
    if dropped == "pose":
        without = told._replace(pose=0 * told.pose)
    denoise = Recorder()
    guided(denoise, told, without, 2.0, join=join)(x, t)
    ((both_x, both_t, given),) = denoise.calls
    assert torch.equal(both_x, torch.cat([x, x])) and torch.equal(both_t, torch.cat([t, t]))
    first, second = (Told(*(part[rows] for part in given)) for rows in (slice(0, 3), slice(3, 6)))
    for part, plain, conditional in zip(Told._fields, first, second, strict=True):
        assert torch.equal(conditional, getattr(told, part))
        lost = part == "pose" if dropped == "pose" else part != "pose"
        assert not bool(plain.any()) if lost else torch.equal(plain, conditional)
    assert given.keep.dtype == torch.bool


def views(count):
    """Predictions that differ, as those from several source views do."""
    return [lambda x, t, view=view: network(x, t) + 0.2 * view * torch.cos(x) for view in range(count)]


@pytest.mark.parametrize("method", ["ddpm", "ddim"])
def test_alternating_between_equal_predictions_is_the_plain_sampler(method):
    process, options = GaussianProcess(alpha_bar("inverted", 100)), {"method": method, "steps": 20}
    predict = alternating([network] * 3, lambda t: t % 3)
    torch.testing.assert_close(
        run(predict, process, start(), noise=drawn(2), **options),
        run(network, process, start(), noise=drawn(2), **options),
        rtol=0,
        atol=0,
    )


def test_alternating_asks_at_each_level_for_the_prediction_that_was_chosen_there():
    process, predicts = GaussianProcess(alpha_bar("inverted", 100)), views(3)
    plan = reverse_steps(process.abar, method="ddpm", steps=13, variance="small", eta=0.0)
    plan = [step for step in plan if step.read_t == step.t]  # the blind first one asks as the second does
    choice = {step.t: number for step, number in zip(plan, [2, 0, 1, 1, 0, 2, 2, 0, 1, 0, 1, 2], strict=True)}
    states = list(denoise_loop(alternating(predicts, choice.__getitem__), plan, start(), clip=False, noise=drawn(2)))
    x = start()
    for state in states:
        eps = [predict(x, torch.full((2,), state.t)) for predict in predicts]
        a = float(process.abar[state.t])
        errors = [float(((x - math.sqrt(1 - a) * each) / math.sqrt(a) - state.x0).abs().max()) for each in eps]
        assert errors[choice[state.t]] < 1e-9
        assert sorted(errors)[1] > 1e-3, "the predictions differ at every level"
        x = state.x


def test_alternating_takes_one_level_and_a_prediction_that_there_is():
    with pytest.raises(ValueError, match="predicts: got none"):
        alternating([], lambda t: 0)
    predict = alternating(views(2), lambda t: t - 5)
    with pytest.raises(ValueError, match=r"t: got levels \[5, 6\]; allowed: one level"):
        predict(start(), torch.tensor([5, 6]))
    for level, got in ((7, 2), (4, -1)):
        with pytest.raises(ValueError, match=f"choose: got {got} at t = {level}; allowed: 0..1"):
            predict(start(), torch.full((2,), level))
