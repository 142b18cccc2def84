"""What the first start of a run resolves: a warm-up as long as the run."""

import pytest

from soda_dist.config.load import with_fields
from soda_dist.config.settle import at_first_start, at_later_start
from tests.tiny import tiny_config


@pytest.mark.parametrize(
    ("steps", "warmup", "settled"), [(30, 50, 3), (30, 30, 3), (30, 29, 29), (30, 0, 0), (1, 1, 0), (600, 5000, 60)]
)
def test_a_warmup_that_is_not_shorter_than_the_run_gets_a_tenth(steps: int, warmup: int, settled: int) -> None:
    config = tiny_config(train={"steps": steps}, optim={"warmup_steps": warmup, "decay": "cosine"})
    found = at_first_start(config)
    assert found.optim.warmup_steps == settled
    assert with_fields(found, {"optim.warmup_steps": warmup}) == config, "nothing else changes"


def test_a_later_start_keeps_what_the_first_one_resolved() -> None:
    stored = tiny_config(train={"precision": "bf16"}, optim={"warmup_steps": 3})
    asked = with_fields(stored, {"train.precision": "auto", "optim.warmup_steps": 50, "train.steps": 1000})
    kept = at_later_start(asked, stored, {50})
    assert (kept.train.precision, kept.optim.warmup_steps, kept.train.steps) == ("bf16", 3, 1000)
    changed = with_fields(asked, {"train.precision": "fp32", "optim.warmup_steps": 40})
    assert at_later_start(changed, stored, {50}) == changed, "what a user names is compared, not replaced"
