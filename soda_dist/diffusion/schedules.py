"""Noise schedules as tables of abar, the remaining share of the signal's power (section 3.4, figure 3)."""

import math
from typing import Literal

import torch
from torch import Tensor

from soda_dist.errors import UserError

ScheduleName = Literal["inverted", "cosine", "linear", "sigmoid"]

MAX_BETA = 0.999
ABAR_FLOOR = 1e-20
"""Replaces values of a curve at or below zero; so low that only MAX_BETA shapes a table's end."""

COSINE_OFFSET = 0.008
LINEAR_BETAS = (1e-4, 0.02)
LINEAR_STEPS = 1000
SIGMOID_RANGE = (-3.0, 3.0)
SIGMOID_TEMPERATURE = 1.0


def alpha_bar(name: ScheduleName, steps: int) -> Tensor:
    """Compute abar_t for t = 1..T (section 3.4, appendix B): float64 [steps] on the CPU; index i is t = i + 1.

    Betas are 1 - abar_t / abar_{t-1} of the schedule's curve, at most 0.999 (Nichol and Dhariwal 2021), and abar is the
    product of 1 - beta, so table and betas agree. Values lie in (0, 1) and never rise. An unknown name, or fewer than
    one step, raises UserError.
    """
    if steps < 1:
        raise UserError("diffusion.steps", steps, ">= 1", "give the number of noise levels")
    u = torch.arange(steps + 1, dtype=torch.float64, device="cpu") / steps
    match name:
        case "inverted":
            betas = _betas(_inverted(u))
        case "cosine":
            betas = _betas(_cosine(u))
        case "sigmoid":
            betas = _betas(_sigmoid(u))
        case "linear":
            betas = _linear_betas(steps)
        case _:
            raise UserError("diffusion.schedule", name, "inverted, cosine, linear, sigmoid", "choose one of them")
    return torch.cumprod(1 - betas.clamp(max=MAX_BETA), dim=0)


def _inverted(u: Tensor) -> Tensor:
    """abar(u) = 2 (1 + s) / pi * arccos(sqrt(u)) - s, the function inverse of the cosine curve (section 3.4).

    Our reading: the curve ends at -s; values not above zero become ABAR_FLOOR, and the limit on beta does the rest.
    """
    return 2 * (1 + COSINE_OFFSET) / math.pi * torch.arccos(torch.sqrt(u)) - COSINE_OFFSET


def _cosine(u: Tensor) -> Tensor:
    """abar(u) = cos^2((u + s) / (1 + s) * pi / 2) (Nichol and Dhariwal 2021, eq. 17)."""
    return torch.cos((u + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2) ** 2


def _sigmoid(u: Tensor) -> Tensor:
    """abar(u) = a falling sigmoid, shifted and scaled to run from 1 to 0 (Jabri et al. 2022).

    Our reading: start -3, end 3, temperature 1, the defaults of its authors' published code.
    """
    start, end = SIGMOID_RANGE
    curve = torch.sigmoid(-(start + u * (end - start)) / SIGMOID_TEMPERATURE)
    return (curve - curve[-1]) / (curve[0] - curve[-1])


def _linear_betas(steps: int) -> Tensor:
    """beta from 1e-4 to 0.02 in equal steps (Ho et al. 2020).

    Our reading: for other T, scaled by 1000 / T as in Nichol and Dhariwal's code: the last step is near pure noise.
    """
    first, last = (beta * LINEAR_STEPS / steps for beta in LINEAR_BETAS)
    return torch.linspace(first, last, steps, dtype=torch.float64, device="cpu")


def _betas(curve: Tensor) -> Tensor:
    """Return the betas [steps] of a curve [steps + 1] from u = 0; being ratios, they divide it by its first value."""
    abar = curve.clamp(min=ABAR_FLOOR)
    return 1 - abar[1:] / abar[:-1]
