"""Samplers on Gaussian data, whose optimal denoiser is known: the law of the samples is compared, not drawn.

The optimal eps is affine in x, so a sampler is an affine map of its unit noises. Feeding it one unit at a time gives
the samples' mean and covariance without Monte Carlo error.
"""

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from soda_dist.diffusion import GaussianProcess, alpha_bar, alternating, guided, invert, sample

MEAN = torch.tensor([0.3, -0.5], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.25, 0.12], [0.12, 0.16]], dtype=torch.float64)
EYE = torch.eye(2, dtype=torch.float64)
SAMPLERS = {
    "small": {"method": "ddpm", "variance": "small", "eta": 0.0},
    "large": {"method": "ddpm", "variance": "large", "eta": 0.0},
    "ddim": {"method": "ddim", "variance": "small", "eta": 0.0},
    "half": {"method": "ddim", "variance": "small", "eta": 0.5},
}
STRIDES = (20, 50, 100, 250, 1000)
# Largest error of the covariance over its largest entry that the step size is allowed to cause, for STRIDES.
ERRORS = {
    "small": (0.40, 0.22, 0.14, 0.073, 0.024),
    "large": (0.20, 0.09, 0.048, 0.020, 0.005),
    "ddim": (0.26, 0.125, 0.076, 0.038, 0.012),
    "half": (0.29, 0.13, 0.080, 0.040, 0.012),
}


def optimal_eps(abar, x, mean, covariance):
    """E[eps | x_t] for x_0 ~ N(mean, covariance)."""
    marginal = abar * covariance + (1 - abar) * torch.eye(len(mean), dtype=torch.float64)
    return math.sqrt(1 - abar) * torch.linalg.solve(marginal, (x - math.sqrt(abar) * mean).T).T


def optimal(process, mean, covariance):
    return lambda x, t: optimal_eps(float(process.abar[t[0]]), x, mean, covariance)


def law(predict_for, process, dim, *, steps, **sampler):
    """Mean [dim] and covariance [dim, dim] of the samples; `predict_for(rows)` gives the prediction for that batch."""
    units = torch.eye(steps * dim, dtype=torch.float64).view(steps * dim, steps, dim)
    units = torch.cat([torch.zeros(1, steps, dim, dtype=torch.float64), units])
    predict = predict_for(len(units))
    out = sample(predict, process, units[:, 0], steps=steps, clip=False, noise=lambda i: units[:, i + 1], **sampler)
    gains = out[1:] - out[0]
    return out[0], gains.T @ gains


def relative_error(covariance, expected):
    return float((covariance - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("position", [0, 1, 2, 3, pytest.param(4, marks=pytest.mark.long)], ids=map(str, STRIDES))
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("schedule", ["inverted", "cosine", "linear"])
def test_samples_have_the_mean_and_covariance_of_the_data(schedule, sampler, position):
    process = GaussianProcess(alpha_bar(schedule, 1000))
    steps, allowed = STRIDES[position], ERRORS[sampler][position]
    mean, covariance = law(lambda _: optimal(process, MEAN, COVARIANCE), process, 2, steps=steps, **SAMPLERS[sampler])
    torch.testing.assert_close(mean, MEAN, rtol=0, atol=2e-3)
    # The last step gives E[x_0 | x_1], so even endless steps end with its covariance: 7.4 % short for the inverted
    # schedule, whose x_1 holds 2 % of noise, and under 0.05 % for the others.
    first = float(process.abar[0])
    posterior_mean = first * COVARIANCE @ torch.linalg.inv(first * COVARIANCE + (1 - first) * EYE) @ COVARIANCE
    assert relative_error(posterior_mean, COVARIANCE) < (0.075 if schedule == "inverted" else 5e-4)
    assert relative_error(covariance, posterior_mean) < allowed


@pytest.mark.parametrize("steps", [50, 250, pytest.param(1000, marks=pytest.mark.long)])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_law_follows_the_recursion_of_the_formulas(sampler, steps):
    process = GaussianProcess(alpha_bar("inverted", 1000))
    options, mu, var = SAMPLERS[sampler], 0.3, 0.2
    levels = [float(process.abar[round(i * 999 / (steps - 1))]) for i in range(steps)]
    m, v = 0.0, 1.0
    for i in reversed(range(steps)):
        now, before = levels[i], levels[i - 1] if i else 1.0
        read = before if i and before / now > 1001 else now  # a blind step asks where it goes to
        slope = math.sqrt(1 - read) / (read * var + 1 - read)
        # x0 = shift + pull m, then eps as it is at the step's own level
        part = (1 - math.sqrt(1 - read) * slope) / math.sqrt(read)
        whole = part * m + math.sqrt(1 - read) * slope * mu
        eps = (m - math.sqrt(now) * whole) / math.sqrt(1 - now)
        slope = (1 - math.sqrt(now) * part) / math.sqrt(1 - now)
        small = (1 - before) / (1 - now) * (1 - now / before)
        if options["method"] == "ddpm":
            alpha = now / before
            pull = (1 - alpha) / math.sqrt(1 - now)
            sigma2 = (small if options["variance"] == "small" else 1 - alpha) if i else 0.0
            m, gain = (m - pull * eps) / math.sqrt(alpha), (1 - pull * slope) / math.sqrt(alpha)
        else:
            sigma2 = options["eta"] ** 2 * small
            direction = math.sqrt(1 - before - sigma2)
            m = math.sqrt(before) * (m - math.sqrt(1 - now) * eps) / math.sqrt(now) + direction * eps
            gain = math.sqrt(before) * (1 - math.sqrt(1 - now) * slope) / math.sqrt(now) + direction * slope
        v = gain**2 * v + sigma2
    data = torch.tensor([mu], dtype=torch.float64), torch.tensor([[var]], dtype=torch.float64)
    mean, covariance = law(lambda _: optimal(process, *data), process, 1, steps=steps, **options)
    assert float(mean) == pytest.approx(m, abs=1e-10)
    assert float(covariance) == pytest.approx(v, rel=1e-9)


@pytest.mark.parametrize("steps", STRIDES)
@pytest.mark.parametrize("schedule", ["inverted", "linear"])
def test_the_large_variance_is_exact_on_unit_gaussian_data_and_the_small_one_on_a_point(schedule, steps):
    process = GaussianProcess(alpha_bar(schedule, 1000))
    unit = torch.zeros(1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    mean, covariance = law(lambda _: optimal(process, *unit), process, 1, steps=steps, **SAMPLERS["large"])
    assert float(mean) == pytest.approx(0.0, abs=1e-12)
    # With strides the inverted schedule's first step predicts x_0 where it goes to, as if x_T held some of it.
    reads_elsewhere = schedule == "inverted" and steps < 1000
    assert float(covariance) == pytest.approx(float(process.abar[0]), rel=4e-3 if reads_elsewhere else 1e-9)
    point = torch.tensor([0.7], dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    mean, covariance = law(lambda _: optimal(process, *point), process, 1, steps=steps, **SAMPLERS["small"])
    assert float(mean) == pytest.approx(0.7, abs=1e-9)
    assert float(covariance) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("steps", [20, 100])
@pytest.mark.parametrize("schedule", ["inverted", "cosine", "linear"])
def test_inversion_solves_the_samplers_affine_map(schedule, steps):
    process = GaussianProcess(alpha_bar(schedule, 1000))
    predict = optimal(process, MEAN, COVARIANCE)
    options = {"steps": steps, "clip": False, "noise": None, **SAMPLERS["ddim"]}
    units = torch.cat([torch.zeros(1, 2, dtype=torch.float64), EYE])
    offset, *rows = sample(predict, process, units, **options)
    matrix = torch.stack([row - offset for row in rows]).T  # DDIM is x_0 = matrix x_T + offset
    x_0 = torch.tensor([[0.9, -0.7], [-0.2, 0.4], [0.3, -0.5]], dtype=torch.float64)
    expected = torch.linalg.solve(matrix, (x_0 - offset).T).T
    error = {
        n: float((invert(predict, process, x_0, steps=steps, iterations=n) - expected).abs().max()) for n in (1, 3, 60)
    }
    assert error[60] < 1e-7 and error[60] < error[3] < error[1], error
    back = sample(predict, process, invert(predict, process, x_0, steps=steps, iterations=60), **options)
    torch.testing.assert_close(back, x_0, rtol=0, atol=1e-7)


def test_sampling_that_alternates_by_level_lies_between_its_predictions_and_can_be_inverted():
    process = GaussianProcess(alpha_bar("inverted", 1000))
    both = [optimal(process, mean, COVARIANCE) for mean in (MEAN, -MEAN)]
    predict = alternating(both, lambda t: t % 2)
    options = {"steps": 100, "clip": False, "noise": None, **SAMPLERS["ddim"]}
    x_T = torch.tensor([[0.4, -1.2], [0.9, 0.3]], dtype=torch.float64)
    x_0, *alone = (sample(each, process, x_T, **options) for each in (predict, *both))
    low, high = torch.minimum(*alone), torch.maximum(*alone)
    assert bool(((x_0 - low > 0.2 * (high - low)) & (high - x_0 > 0.2 * (high - low))).all())
    torch.testing.assert_close(invert(predict, process, x_0, steps=100, iterations=60), x_T, rtol=0, atol=1e-6)


class Told(NamedTuple):
    """A condition: the mean that the data have, and whether it is told at all."""

    mean: Tensor
    """[B, 2]."""
    kept: Tensor
    """bool [B]."""


def conditional_family(process, covariances):
    """A denoiser optimal for N(told.mean, covariances[1]) where `told.kept` and N(0, covariances[0]) elsewhere."""

    def denoise(x, t, told):
        abar, kept = float(process.abar[t[0]]), told.kept
        eps = torch.empty_like(x)
        for rows, covariance in ((~kept, covariances[0]), (kept, covariances[1])):
            centred = x[rows] - math.sqrt(abar) * told.mean[rows]
            eps[rows] = optimal_eps(abar, centred, torch.zeros_like(MEAN), covariance)
        return eps

    return denoise


def guide(denoise, rows, w):
    """The prediction for `rows` samples told MEAN, guided away from being told nothing."""
    kept = torch.ones(rows, dtype=torch.bool)
    told, without = Told(MEAN.expand(rows, 2), kept), Told(torch.zeros(rows, 2, dtype=torch.float64), ~kept)
    return guided(
        denoise, told, without, w, join=lambda one, other: Told(*map(torch.cat, zip(one, other, strict=True)))
    )


@pytest.mark.parametrize("w", [0.0, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_guidance_moves_the_mean_w_times_as_far_where_the_covariances_agree(sampler, w):
    # With one covariance for both branches the guided eps is the optimal one of a mean w times as far.
    process = GaussianProcess(alpha_bar("inverted", 1000))
    denoise = conditional_family(process, (COVARIANCE, COVARIANCE))
    mean, covariance = law(lambda rows: guide(denoise, rows, w), process, 2, steps=100, **SAMPLERS[sampler])
    plain = law(lambda _: optimal(process, MEAN, COVARIANCE), process, 2, steps=100, **SAMPLERS[sampler])[1]
    torch.testing.assert_close(mean, w * MEAN, rtol=0, atol=3e-3)
    torch.testing.assert_close(covariance, plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("w", [0.0, 1.0, 2.5])
def test_one_guided_ddim_step_where_the_covariances_differ(w):
    process = GaussianProcess(torch.tensor([0.8, 0.3], dtype=torch.float64))
    covariances = (COVARIANCE, 0.1 * EYE)
    x_T = torch.tensor([[0.4, -1.2]], dtype=torch.float64)
    predict = guide(conditional_family(process, covariances), 1, w)
    x = sample(
        predict, process, x_T, method="ddim", steps=1, variance="small", eta=0.0, clip=False, noise=lambda _: x_T
    )
    # E[x_0 | x_T] is affine in eps, so guidance extrapolates between the two posterior means.
    means = [
        m + math.sqrt(0.3) * c @ torch.linalg.inv(0.3 * c + 0.7 * EYE) @ (x_T[0] - math.sqrt(0.3) * m)
        for m, c in ((torch.zeros_like(MEAN), covariances[0]), (MEAN, covariances[1]))
    ]
    torch.testing.assert_close(x[0], means[0] + w * (means[1] - means[0]), rtol=1e-10, atol=1e-10)


def test_drawn_float32_samples_have_the_law_too():
    process = GaussianProcess(alpha_bar("cosine", 1000))
    generator = torch.Generator().manual_seed(0)
    count = 20_000

    def predict(x, t):
        return optimal_eps(float(process.abar[t[0]]), x.double(), MEAN, COVARIANCE).float()

    x_T = torch.randn(count, 2, generator=generator)
    x = sample(
        predict,
        process,
        x_T,
        method="ddpm",
        steps=250,
        variance="large",
        eta=0.0,
        clip=False,
        noise=lambda _: torch.randn(count, 2, generator=generator),
    ).double()
    # Five standard errors of the mean, 0.025 of the largest variance for 20,000 draws and 0.7 % of step error.
    torch.testing.assert_close(x.mean(0), MEAN, rtol=0, atol=5 * 0.5 / math.sqrt(count))
    assert relative_error(torch.cov(x.T), COVARIANCE) < 0.06
