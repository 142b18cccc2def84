"""The reverse process: DDPM and DDIM over strided steps, guidance, inversion (section 3.1, appendices B and C).

Options outside their documented ranges raise UserError.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from soda_dist.diffusion.process import GaussianProcess
from soda_dist.diffusion.schedules import MAX_BETA
from soda_dist.errors import UserError

Method = Literal["ddpm", "ddim"]
Variance = Literal["small", "large"]
Predict = Callable[[Tensor, Tensor], Tensor]
"""(x [B, ...], t int64 [B] in 0..T-1) -> eps of x's shape."""
Condition = TypeVar("Condition")
"""A denoiser's input for B samples besides x and t; only the denoiser knows its content."""
Denoise = Callable[[Tensor, Tensor, Condition], Tensor]
"""(x [B, ...], t int64 [B], condition of B samples) -> eps of x's shape."""
BLIND = 1.001 / (1 - MAX_BETA)
"""Growth of abar over one kept step that no step of a chain without strides exceeds, rounding included."""
Noise = Callable[[int], Tensor]
"""i, the number of steps taken before (0 at x_T) -> standard normal noise of x's shape."""


@dataclass(frozen=True, kw_only=True)
class ReverseStep:
    """One kept step: x_prev = x0_weight * x0 + x_weight * x + noise_scale * n, with x0 as predicted at `read_t`."""

    t: int
    """Index into the process's table, 0..T-1."""
    abar: float
    read_t: int
    """Index of the level at which eps and x0 are predicted: t, except where `reverse_steps` says otherwise."""
    read_abar: float
    x0_weight: float
    x_weight: float
    noise_scale: float


class Denoised(NamedTuple):
    """Result of one step."""

    t: int
    """Index of the noise level at which the step started."""
    x: Tensor
    """State after the step."""
    x0: Tensor
    """The predicted clean image, clipped if `clip`."""


def sample(
    predict: Predict,
    process: GaussianProcess,
    x_T: Tensor,
    *,
    method: Method,
    steps: int,
    variance: Variance,
    eta: float,
    clip: bool,
    noise: Noise,
) -> Tensor:
    """Sample x_0 from x_T (section 3.1, reverse step; appendix C, strided sampling): x_T's shape and dtype.

    Args:
        predict: eps of a batch; see `guided`.
        x_T: [B, ...] float, standard normal for a fresh sample.
        method, steps, variance, eta: as in `reverse_steps`.
        clip: as in `denoise_loop`.
        noise: called with i before each step that adds noise: never the last, never in DDIM with eta 0.

    Raises:
        UserError: as `reverse_steps`.
    """
    plan = reverse_steps(process.abar, method=method, steps=steps, variance=variance, eta=eta)
    x = x_T
    for state in denoise_loop(predict, plan, x_T, clip=clip, noise=noise):
        x = state.x
    return x


@torch.no_grad()
def denoise_loop(
    predict: Predict, plan: Sequence[ReverseStep], x_T: Tensor, *, clip: bool, noise: Noise
) -> Iterator[Denoised]:
    """Yield the result of each step of `plan`, starting from x_T (appendix B).

    Args:
        clip: clip the predicted x0 to [-1, 1] before it is used. Our reading: the paper is silent; the code of Ho et
            al. and of Nichol and Dhariwal clips. DDIM then takes its direction from the clipped x0, as theirs does.
    """
    x = x_T
    for i, step in enumerate(plan):
        t = torch.full((x.shape[0],), step.read_t, dtype=torch.int64, device=x.device)
        x0 = (x - math.sqrt(1 - step.read_abar) * predict(x, t)) / math.sqrt(step.read_abar)
        if clip:
            x0 = x0.clamp(-1, 1)
        x = step.x0_weight * x0 + step.x_weight * x
        if step.noise_scale > 0:
            x = x + step.noise_scale * noise(i)
        yield Denoised(step.t, x, x0)


@torch.no_grad()
def invert(predict: Predict, process: GaussianProcess, x_0: Tensor, *, steps: int, iterations: int) -> Tensor:
    """Find the x_T from which DDIM without noise or clipping returns to x_0 (Song et al. 2021, section 4.3).

    Each step F(x, t) = x_prev is solved for x by x <- x - (F(x, t) - x_prev) / F', where F' is the slope of F for
    standard normal data. For Gaussian data of a smaller variance every iteration shrinks the error, at every noise
    level; the usual form, which keeps eps fixed, stalls at the noisiest steps.

    Args:
        predict: eps of a batch, as the sampler will use it; see `guided`.
        x_0: [B, ...] float in [-1, 1].
        steps: kept steps, as in `reverse_steps`.
        iterations: evaluations of `predict` per step, at least 1.

    Raises:
        UserError: as `reverse_steps`, or iterations below 1.
    """
    if iterations < 1:
        raise UserError("iterations", iterations, ">= 1", "more are closer to the exact inverse")
    x = x_0
    for step in reversed(reverse_steps(process.abar, method="ddim", steps=steps, variance="small", eta=0.0)):
        t = torch.full((x.shape[0],), step.read_t, dtype=torch.int64, device=x.device)
        signal, noise = math.sqrt(step.read_abar), math.sqrt(1 - step.read_abar)
        slope = step.x_weight + step.x0_weight * signal
        x_prev = x
        for _ in range(iterations):
            x0 = (x - noise * predict(x, t)) / signal
            x = x - (step.x0_weight * x0 + step.x_weight * x - x_prev) / slope
    return x


def guided(
    denoise: Denoise[Condition],
    condition: Condition,
    without: Condition,
    w: float,
    *,
    join: Callable[[Condition, Condition], Condition],
) -> Predict:
    """Predict eps(without) + w (eps(condition) - eps(without)) (section 3.2.1), both branches in one batch of 2 B.

    `without` comes first in that batch. It is the condition fully masked or, to guide by one part only, with that part
    masked (section 3.3: the latent, the pose, or both). w = 1 and w = 0 run only the one branch they need.

    Args:
        condition, without: of the same B samples.
        w: guidance scale; 1 is plain conditional sampling, 2 to 3 the paper's range.
        join: concatenates two conditions of B samples, the first one's samples first; called once.
    """
    if w == 1:
        return lambda x, t: denoise(x, t, condition)
    if w == 0:
        return lambda x, t: denoise(x, t, without)
    both = join(without, condition)

    def predict(x: Tensor, t: Tensor) -> Tensor:
        plain, conditional = denoise(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        return plain + w * (conditional - plain)

    return predict


def alternating(predicts: Sequence[Predict], choose: Callable[[int], int]) -> Predict:
    """Choose one of several predictions at each noise level: stochastic conditioning (section 4.2.2, after 3DiM).

    Args:
        predicts: one per source view.
        choose: t in 0..T-1 -> index of the prediction for the whole batch at that level. A function of t alone:
            `invert` calls it several times per level and must get the sampler's answer.

    Raises:
        ValueError: no predictions; when called, a batch at several levels or an index out of range.
    """
    if not predicts:
        raise ValueError("predicts: got none; allowed: at least one")

    def predict(x: Tensor, t: Tensor) -> Tensor:
        levels = t.unique().tolist()
        if len(levels) != 1:
            raise ValueError(f"t: got levels {levels}; allowed: one level for the whole batch")
        chosen = choose(levels[0])
        if not 0 <= chosen < len(predicts):
            raise ValueError(f"choose: got {chosen} at t = {levels[0]}; allowed: 0..{len(predicts) - 1}")
        return predicts[chosen](x, t)

    return predict


def reverse_steps(abar: Tensor, *, method: Method, steps: int, variance: Variance, eta: float) -> list[ReverseStep]:
    """Plan the kept steps from the noisiest down, with betas recomputed from abar (Nichol and Dhariwal 2021, sec. 4).

    Our reading: a step over which abar grows more than BLIND times predicts x0 at the level that it goes to. In the
    inverted schedule that is the first one, from an abar of 1e-5 to one near 0.1: at 1e-5 an error of 0.01 in eps is
    one of 3 in x0, of which 0.3 would enter the sample despite clipping, and no later step removes it. A chain without
    strides is unchanged: it passes through an abar of 0.01.

    Args:
        abar: float64 [T], as in `GaussianProcess.abar`.
        steps: number of kept steps, 1..T.
        variance: DDPM's fixed variance: the posterior's (small) or beta (large); DDIM ignores it.
        eta: DDIM's share of the small variance's standard deviation, 0..1; DDPM ignores it.

    Raises:
        UserError: steps outside 1..T, eta outside 0..1, or an unknown method or variance.
    """
    _check_options(method, variance, eta)
    kept = kept_steps(len(abar), steps)[::-1]
    plan = []
    for t, below in zip(kept, [*kept[1:], None], strict=True):
        now, before = float(abar[t]), 1.0 if below is None else float(abar[below])
        read = t if below is None or before / now <= BLIND else below
        ddpm = method == "ddpm"
        x0, x, sigma = _ddpm_weights(now, before, variance) if ddpm else _ddim_weights(now, before, eta)
        plan.append(
            ReverseStep(
                t=t, abar=now, read_t=read, read_abar=float(abar[read]), x0_weight=x0, x_weight=x, noise_scale=sigma
            )
        )
    return plan


def kept_steps(total: int, steps: int) -> list[int]:
    """Return the kept indices, ascending, spread evenly from first to last (Nichol and Dhariwal 2021, sec. 4).

    `steps` is in 1..total. A single step is the last one, where x_T lives.

    Raises:
        UserError: steps outside 1..total.
    """
    if not 1 <= steps <= total:
        raise UserError("sampling.steps", steps, f"1..{total}", "choose a number in this range")
    if steps == 1:
        return [total - 1]
    return [round(i * (total - 1) / (steps - 1)) for i in range(steps)]


def _ddpm_weights(now: float, before: float, variance: Variance) -> tuple[float, float, float]:
    """Return the weights of x0 and x in the posterior's mean, and sigma (Ho et al. 2020, eq. 7 and section 3.2).

    With x0 unclipped the mean is 1/sqrt(alpha) (x - beta/sqrt(1-abar) eps), the paper's reverse step. The last step
    adds no noise, as in their algorithm 2.
    """
    alpha = now / before
    beta = 1 - alpha
    x0_weight = math.sqrt(before) * beta / (1 - now)
    x_weight = math.sqrt(alpha) * (1 - before) / (1 - now)
    if before == 1.0:
        return x0_weight, x_weight, 0.0
    sigma2 = beta if variance == "large" else (1 - before) / (1 - now) * beta
    return x0_weight, x_weight, math.sqrt(sigma2)


def _ddim_weights(now: float, before: float, eta: float) -> tuple[float, float, float]:
    """Return the weights of x0 and x, and sigma (Song et al. 2021, eq. 12 and 16), with eps written in x and x0."""
    # The share of 1 - before that is fresh noise; at most 1 even with rounding, since now / before >= now.
    fresh = eta**2 * (1 - now / before) / (1 - now)
    x_weight = math.sqrt((1 - before) * (1 - fresh) / (1 - now))
    return math.sqrt(before) - x_weight * math.sqrt(now), x_weight, math.sqrt((1 - before) * fresh)


def _check_options(method: str, variance: str, eta: float) -> None:
    if method not in ("ddpm", "ddim"):
        raise UserError("sampling.method", method, "ddpm, ddim", "choose one of them")
    if variance not in ("small", "large"):
        raise UserError("sampling.variance", variance, "small, large", "choose one of them")
    if not 0 <= eta <= 1:
        raise UserError("sampling.eta", eta, "0..1", "0 adds no noise, 1 as much as DDPM")
