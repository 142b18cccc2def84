"""Which checkpoints of a run stay: the latest, those of some steps, the best."""

import math
from collections.abc import Collection, Mapping

from soda_dist.config.sections import Train


def kept(steps: Collection[int], train: Train, values: Mapping[int, float]) -> set[int]:
    """Return which of the complete checkpoints `steps` stay by `keep_checkpoints`, `keep_every_steps`, `keep_best`.

    Args:
        values: of the metric of `keep_best`, by step, as far as it was measured.
    """
    stay = set(sorted(steps)[-train.keep_checkpoints :])
    if train.keep_every_steps is not None:
        stay |= {step for step in steps if step % train.keep_every_steps == 0}
    best = best_step(steps, train, values)
    return stay if best is None else stay | {best}


def best_step(steps: Collection[int], train: Train, values: Mapping[int, float]) -> int | None:
    """Return the step with the best finite value, the earliest of equals; None without one, or if the rule is off."""
    found = {step: values[step] for step in steps if math.isfinite(values.get(step, math.nan))}
    if train.keep_best == "none" or not found:
        return None
    best = (min if train.keep_best == "loss" else max)(found.values())
    return min(step for step, value in found.items() if value == best)
