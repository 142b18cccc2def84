"""Samplers against diffusers, the paper's formula and their own promises; guidance against its formula."""

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from soda_dist.diffusion import GaussianProcess, alpha_bar, denoise_loop, guided, reverse_steps, sample
from soda_dist.diffusion.sampling import kept_steps
from soda_dist.errors import UserError

SHAPE = (2, 3, 4, 4)
SCHEDULES = ("inverted", "cosine", "linear")


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


@pytest.mark.parametrize("steps", [1000, 250, 75, 20])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ddpm_equals_diffusers(schedule, variance, clip, steps):
    process = GaussianProcess(alpha_bar(schedule, 1000))
    theirs = DDPMScheduler(1000, variance_type=f"fixed_{variance}", clip_sample=clip, timestep_spacing="linspace")
    # Their table is float32; with ours the two can be compared to rounding.
    theirs.alphas_cumprod = process.abar
    theirs.set_timesteps(steps)
    x, generator = start(), torch.Generator().manual_seed(2)
    for t in theirs.timesteps:
        x = theirs.step(network(x, t.expand(2)), t, x, generator=generator).prev_sample
    ours = run(network, process, start(), variance=variance, clip=clip, steps=steps)
    torch.testing.assert_close(ours, x, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("steps", [1000, 75, 20])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ddim_equals_diffusers_on_the_kept_steps(schedule, eta, clip, steps):
    process = GaussianProcess(alpha_bar(schedule, 1000))
    kept = torch.from_numpy(np.linspace(0, 999, steps).round().astype(np.int64))
    theirs = DDIMScheduler(steps, clip_sample=clip)
    theirs.alphas_cumprod = process.abar[kept]
    theirs.set_timesteps(steps)
    x, generator = start(), torch.Generator().manual_seed(2)
    for t in theirs.timesteps:
        eps = network(x, kept[t].expand(2))
        x = theirs.step(eps, int(t), x, eta=eta, use_clipped_model_output=clip, generator=generator).prev_sample
    ours = run(network, process, start(), method="ddim", eta=eta, clip=clip, steps=steps)
    torch.testing.assert_close(ours, x, rtol=1e-8, atol=1e-8)


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


def test_predict_sees_table_indices_from_the_last_to_the_first():
    seen = []

    def predict(x, t):
        assert t.dtype == torch.int64
        assert t.shape == (2,)
        seen.append(sorted(set(t.tolist())))
        return network(x, t)

    run(predict, GaussianProcess(alpha_bar("inverted", 21)), start(), steps=5)
    assert seen == [[20], [15], [10], [5], [0]]


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


class Recorder:
    """A denoiser of [B, 4] images whose latent has two sections of two elements; it keeps what it was given."""

    def __init__(self):
        self.calls = []

    def __call__(self, x, t, z, keep):
        self.calls.append((x, t, z, keep))
        seen = z if keep is None else z * keep.repeat_interleave(2, dim=1)
        return torch.sin(x) * t.view(-1, 1) + seen**2 + 0.5 * seen


def guidance_inputs():
    generator = torch.Generator().manual_seed(3)
    x, z = torch.randn(3, 4, generator=generator), torch.randn(3, 4, generator=generator)
    return x, torch.tensor([1, 5, 9]), z, torch.tensor([[True, True], [True, False], [False, True]])


@pytest.mark.parametrize("with_keep", [True, False])
@pytest.mark.parametrize("w", [0.0, 0.5, 1.0, 2.0, 3.0])
def test_guidance_equals_its_formula_sample_by_sample(w, with_keep):
    x, t, z, keep = guidance_inputs()
    keep = keep if with_keep else None
    eps = guided(Recorder(), z, keep, w)(x, t)
    for b in range(3):
        kept = [1.0] * 4 if keep is None else [float(keep[b, k // 2]) for k in range(4)]
        for k in range(4):
            without = math.sin(float(x[b, k])) * int(t[b])
            latent = float(z[b, k]) * kept[k]
            conditional = without + latent**2 + 0.5 * latent
            assert float(eps[b, k]) == pytest.approx(without + w * (conditional - without), abs=1e-5)


@pytest.mark.parametrize(("w", "rows"), [(0.0, 3), (1.0, 3), (2.0, 6)])
def test_guidance_calls_the_denoiser_once_with_no_branch_that_it_does_not_need(w, rows):
    x, t, z, keep = guidance_inputs()
    denoise = Recorder()
    guided(denoise, z, keep, w)(x, t)
    (call,) = denoise.calls
    assert [len(tensor) for tensor in call] == [rows] * 4


@pytest.mark.parametrize("w", [0.0, 2.0])
def test_the_branch_without_condition_sees_no_latent_and_no_section(w):
    x, t, z, keep = guidance_inputs()
    denoise = Recorder()
    guided(denoise, z, keep, w)(x, t)
    _, _, latents, kept = denoise.calls[0]
    assert not bool(latents[:3].any())
    assert kept.dtype == torch.bool
    assert not bool(kept[:3].any())
