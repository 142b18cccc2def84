"""Noise schedules, the forward process and samplers, with torch only."""

from soda_dist.diffusion.process import GaussianProcess
from soda_dist.diffusion.sampling import (
    Denoise,
    Denoised,
    Noise,
    Predict,
    alternating,
    denoise_loop,
    guided,
    invert,
    reverse_steps,
    sample,
)
from soda_dist.diffusion.schedules import alpha_bar

__all__ = [
    "Denoise",
    "Denoised",
    "GaussianProcess",
    "Noise",
    "Predict",
    "alpha_bar",
    "alternating",
    "denoise_loop",
    "guided",
    "invert",
    "reverse_steps",
    "sample",
]
