"""Learning-rate schedule (table 12): linear warm-up, then constant, or cosine decay to a fraction."""

import math

from soda_dist.config.sections import Optim


def learning_rate(step: int, optim: Optim, total_steps: int) -> float:
    """Compute the rate of update `step` (0-based): the peak at `warmup_steps - 1`, the end of the decay at the last."""
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    if optim.decay == "none":
        return optim.lr
    progress = (step - optim.warmup_steps) / max(1, total_steps - 1 - optim.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return optim.lr * (optim.final_lr_fraction + (1 - optim.final_lr_fraction) * cosine)
