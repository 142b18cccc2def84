"""Settings that the first start of a run resolves and later ones keep: the precision, and a warm-up that is too long.

The device that `train.precision: auto` depends on is known to the workers alone, see `training.precision`.
"""

from soda_dist.config.load import with_fields
from soda_dist.config.schema import RunConfig

PRECISION, WARMUP = "train.precision", "optim.warmup_steps"
SHARE = 10
"""A warm-up that is not shorter than the run gets a tenth of it: the paper's 5000 steps are 2 to 10 % of most runs."""


def at_first_start(asked: RunConfig) -> RunConfig:
    """Shorten a warm-up that is not shorter than the run."""
    if asked.optim.warmup_steps < asked.train.steps:
        return asked
    return with_fields(asked, {WARMUP: asked.train.steps // SHARE})


def at_later_start(asked: RunConfig, stored: RunConfig, asked_before: set[int]) -> RunConfig:
    """Keep what the run's first start resolved.

    Args:
        asked: the configuration of this start.
        stored: that of the run.
        asked_before: warm-ups that earlier starts asked for and did not get.
    """
    fields: dict[str, object] = {}
    if asked.train.precision == "auto":
        fields[PRECISION] = stored.train.precision
    if asked.optim.warmup_steps in asked_before:
        fields[WARMUP] = stored.optim.warmup_steps
    return with_fields(asked, fields)
