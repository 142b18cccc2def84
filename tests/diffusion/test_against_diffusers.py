"""Schedules, the forward process and every single step of the samplers against diffusers: same betas, eps and noise.

Where the two differ, and the setting under which they agree:

- Their tables are float32, in which 1 - abar_t / abar_{t-1} is off by up to 6e-4 of itself. Their schedulers get our
  betas, and then our float64 table in place of the one that they made of them.
- Their DDPM steps along any given list of timesteps, as ours does along the kept ones; `linspace` is our list, but for
  a single step, which is t = 0 for them and the last t for us.
- Their DDIM goes from t to t - T // steps whatever its list says: for our list it is a scheduler over the kept levels
  alone, with the betas recomputed for these. What it does otherwise is the last test.
- Their DDIM clips x0 and yet keeps the direction of the unclipped one, unless told `use_clipped_model_output`.
- A step that starts blind predicts x0 at the level that it goes to (`reverse_steps`); they are told the eps that means
  the same x0 where they are.
- Their `sigmoid` is another curve: a sigmoid of the betas, not of abar. They have no inverted schedule.
"""

import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from soda_dist.diffusion import GaussianProcess, alpha_bar, denoise_loop, reverse_steps

SHAPE = (2, 3, 4, 4)
SCHEDULES = ("inverted", "cosine", "linear", "sigmoid")
STEPS = (pytest.param(1000, marks=pytest.mark.long), 250, 75, 20)


def network(x, t):
    """A nonlinear stand-in for a denoiser that depends on x and t."""
    level = t.view(-1, 1, 1, 1).to(x.dtype) / 100
    return torch.tanh(1.5 * x + 0.3 * torch.cos(level)) + 0.1 * x.flip(-1)


def betas_of(abar):
    return 1 - abar / torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])


def scheduler_of(kind, abar, **options):
    """Theirs with the betas of this table, and the table itself in float64."""
    theirs = kind(len(abar), trained_betas=betas_of(abar).tolist(), **options)
    torch.testing.assert_close(theirs.alphas_cumprod.double(), abar, rtol=2e-4, atol=1e-7)
    theirs.alphas_cumprod = abar
    return theirs


def their_eps(step, x, eps):
    """What means at the step's own level the x0 that `eps` means at the level it was asked at."""
    if step.read_t == step.t:
        return eps
    x0 = (x - math.sqrt(1 - step.read_abar) * eps) / math.sqrt(step.read_abar)
    return (x - math.sqrt(step.abar) * x0) / math.sqrt(1 - step.abar)


def assert_each_step_is_theirs(process, their_step, *, clip, **options):
    """`their_step(i, t, x, eps)` takes the step from where ours started, so that no error is made up for by another."""
    eps, generator = [], torch.Generator().manual_seed(2)

    def predict(x, t):
        eps.append(network(x, t))
        return eps[-1]

    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours, theirs = [], []
    plan = reverse_steps(process.abar, **options)
    noise = [torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in plan]
    for i, state in enumerate(denoise_loop(predict, plan, x, clip=clip, noise=lambda i: noise[i])):
        step = their_step(i, state.t, x, their_eps(plan[i], x, eps[i]))
        ours += [state.x, state.x0]
        theirs += [step.prev_sample, step.pred_original_sample]
        x = state.x
    assert len(ours) == 2 * options["steps"]
    torch.testing.assert_close(torch.stack(ours), torch.stack(theirs), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_each_ddpm_step_is_theirs(schedule, variance, clip, steps):
    process, generator = GaussianProcess(alpha_bar(schedule, 1000)), torch.Generator().manual_seed(2)
    theirs = scheduler_of(DDPMScheduler, process.abar, variance_type=f"fixed_{variance}", clip_sample=clip)
    options = {"method": "ddpm", "steps": steps, "variance": variance, "eta": 0.0}
    theirs.set_timesteps(timesteps=[step.t for step in reverse_steps(process.abar, **options)])

    def their_step(_, t, x, eps):
        return theirs.step(eps, t, x, generator=generator)

    assert_each_step_is_theirs(process, their_step, clip=clip, **options)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_each_ddim_step_is_theirs_over_the_kept_levels(schedule, eta, clip, steps):
    process, generator = GaussianProcess(alpha_bar(schedule, 1000)), torch.Generator().manual_seed(2)
    options = {"method": "ddim", "steps": steps, "variance": "small", "eta": eta}
    kept = [step.t for step in reverse_steps(process.abar, **options)]
    theirs = scheduler_of(DDIMScheduler, process.abar[kept[::-1]], clip_sample=clip)
    theirs.set_timesteps(steps)

    def their_step(i, t, x, eps):
        assert t == kept[i]
        number = int(theirs.timesteps[i])
        return theirs.step(eps, number, x, eta=eta, use_clipped_model_output=clip, generator=generator)

    assert_each_step_is_theirs(process, their_step, clip=clip, **options)


@pytest.mark.parametrize("steps", [1000, 250, 75, 20, 3, 2])
def test_the_kept_steps_are_their_linspace(steps):
    theirs = DDPMScheduler(1000, timestep_spacing="linspace")
    theirs.set_timesteps(steps)
    plan = reverse_steps(alpha_bar("linear", 1000), method="ddpm", steps=steps, variance="small", eta=0.0)
    assert [step.t for step in plan] == theirs.timesteps.tolist()


@pytest.mark.parametrize("steps", [10, 75, 1000, 4000])
def test_cosine_betas_are_theirs(steps):
    theirs = DDPMScheduler(steps, beta_schedule="squaredcos_cap_v2").betas.double()
    torch.testing.assert_close(betas_of(alpha_bar("cosine", steps)), theirs, rtol=1e-7, atol=0)


@pytest.mark.parametrize("steps", [75, 1000, 4000])
def test_linear_betas_are_theirs_whose_ends_are_scaled_for_another_number_of_steps(steps):
    ends = {} if steps == 1000 else {"beta_start": 0.1 / steps, "beta_end": 20 / steps}
    theirs = DDPMScheduler(steps, beta_schedule="linear", **ends).betas.double()
    torch.testing.assert_close(betas_of(alpha_bar("linear", steps)), theirs, rtol=3e-7, atol=0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_noised_is_theirs(schedule):
    process, generator = GaussianProcess(alpha_bar(schedule, 1000)), torch.Generator().manual_seed(0)
    theirs, t = scheduler_of(DDPMScheduler, process.abar), torch.arange(1000)
    x0, eps = (torch.randn(1000, 3, 2, 2, generator=generator) for _ in range(2))
    expected = theirs.add_noise(x0.double(), eps.double(), t)
    torch.testing.assert_close(process.noised(x0, t, eps).double(), expected, rtol=0, atol=5e-7)


@pytest.mark.parametrize(("steps", "spacing"), [(20, "linspace"), (75, "linspace"), (20, "trailing"), (20, "leading")])
def test_their_own_strided_ddim_takes_the_same_step_but_to_another_level(steps, spacing):
    abar, stride = alpha_bar("cosine", 1000), 1000 // steps
    theirs = scheduler_of(DDIMScheduler, abar, clip_sample=False, timestep_spacing=spacing)
    theirs.set_timesteps(steps)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    eps = network(x, torch.zeros(2, dtype=torch.int64))
    for t in theirs.timesteps.tolist():
        table = abar[[t - stride, t]] if t >= stride else abar[[t]]
        plan = reverse_steps(table, method="ddim", steps=len(table), variance="small", eta=0.0)
        ours = next(denoise_loop(lambda x, t: eps, plan, x, clip=False, noise=None))
        told = their_eps(plan[0], x, eps)
        torch.testing.assert_close(ours.x, theirs.step(told, t, x).prev_sample, rtol=1e-9, atol=1e-9)
