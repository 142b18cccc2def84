"""`train.guard`: what many skipped steps, and state that is not finite, do to a run."""

import json
from contextlib import nullcontext, suppress

import pytest
import torch

from soda_dist.config.sections import Guard
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.errors import DivergedError
from soda_dist.runs.folder import attempts, claim, complete_steps, record_rollback, rollbacks
from soda_dist.training.context import LocalContext
from soda_dist.training.finite import UnstableError
from soda_dist.training.guard import SkipGuard, Skips
from soda_dist.training.loop import fit
from soda_dist.training.randomness import salted
from tests.tiny import feed, tiny_config
from tests.training.poisoned import in_steps, poison
from tests.training.test_checkpoint import state_of
from tests.training.test_engine import engine_of

TRAIN = {"steps": 8, "log_every_steps": 1, "checkpoint_every_steps": 2, "keep_checkpoints": 8}
CONFIG = tiny_config(
    encoder={"norm": "batch"},
    train={**TRAIN, "guard": {"skipped_steps": 1, "window_steps": 4, "rollbacks": 2}},
)


def train(run: Folder, *, spoilt=(), salts=(), stop=None, config=CONFIG, spoil=None):
    """Train in `run`; gradients of the steps `spoilt` are NaN while the seed is one of `salts`, all if it is None.

    Returns the engine, the positions that each step saw, and the lines shown.
    """
    engine, seen, said = engine_of(config), [], []
    hit = in_steps(*spoilt, batch=8)
    seeds = None if salts is None else {salted(config.seed, [(0, salt)], 0) for salt in salts}
    poison(
        engine.objective,
        lambda index: hit(index) and (seeds is None or engine.objective.seed in seeds),
        value=False,
        gradient=True,
    )

    def batches(first):
        for number, pairs in enumerate(feed(config)(first), start=first + 1):
            if stop is not None and number > stop:
                raise KeyboardInterrupt
            if spoil is not None:
                spoil(number, engine)
            seen.append(int(pairs.index[0]) // 8 + 1)
            yield pairs

    with suppress(KeyboardInterrupt):
        fit(LocalContext(say=said.append), engine, config, batches, run, rows=64)
    return engine, seen, said


def equal(one, other) -> bool:
    """Whether two engines have the same state, bit for bit."""
    a, b = ({**state_of(e), **dict(e.objective.named_buffers())} for e in (one, other))
    return all(torch.equal(a[name], b[name]) for name in a)


def rows(run: Folder) -> list[dict]:
    return [json.loads(line) for line in run.read("metrics.jsonl").decode().splitlines()]


@pytest.mark.slow
def test_many_skipped_steps_go_back_to_a_good_checkpoint_and_repeat_exactly_with_other_noise(tmp_path):
    run, again, reference = (open_folder(str(tmp_path / name)) for name in "abc")
    engine, seen, said = train(run, spoilt=(5, 6), salts=(0,))
    assert seen == [1, 2, 3, 4, 5, 6, 5, 6, 7, 8], "the order of the samples stays"
    (line,) = (text for text in said if "going back" in text)
    assert line == (
        "going back to step 4 with other noise, rollback 1 of 2: 2 of steps 5 to 6 skipped "
        "(not finite: the loss in 0, the gradient in 2)"
    )
    assert [(each["step"], each["salt"]) for each in rollbacks(run)] == [(4, 1)]
    assert [row["skipped"] for row in rows(run)] == [0] * 8
    record_rollback(reference, 4, "as the other")
    assert equal(engine, train(reference)[0]), "the same run, whose rollback is known from the start"
    train(again, spoilt=(5, 6), salts=(0,), stop=6)  # ends in the seventh step, after its rollback
    assert complete_steps(again)[-1] in (4, 6) and len(rollbacks(again)) == 1
    resumed, seen, _ = train(again, spoilt=(5, 6), salts=(0,))
    assert equal(engine, resumed) and seen[-2:] == [7, 8]
    straight, *_ = train(open_folder(str(tmp_path / "d")))
    assert not equal(engine, straight), "the noise is another"


@pytest.mark.slow
def test_trouble_that_stays_goes_further_back_and_ends_with_a_diagnosis_that_a_lower_rate_mends(tmp_path):
    run = open_folder(str(tmp_path))
    claim(run, CONFIG)
    with pytest.raises(DivergedError) as caught:
        train(run, spoilt=(5, 6, 7, 8), salts=None)
    assert str(caught.value) == (
        "optim.lr: got 0.001 with 2 of steps 5 to 6 skipped (not finite: the loss in 0, the gradient in 2) after 2 "
        "rollbacks; allowed: a rate at which training stays finite; lower it and rerun the command, which resumes from "
        "step 4"
    )
    assert [each["step"] for each in rollbacks(run)] == [4, 2, 4]
    assert complete_steps(run) == [2, 4], "those within the trouble are gone"
    mended = claim(run, tiny_config(**{**CONFIG.model_dump(), "optim": {**CONFIG.optim.model_dump(), "lr": 1e-4}}))
    _, seen, said = train(run, config=mended)
    assert seen == [5, 6, 7, 8] and not any("going back" in line for line in said)
    assert attempts(run)[-1]["changed"] == {"field": "optim.lr", "from": 1e-3, "to": 1e-4, "step": 4}
    assert [row["lr"] for row in rows(run)][-2:] == [1e-4, 1e-4]


@pytest.mark.slow
def test_state_that_is_not_finite_goes_back_instead_of_into_a_checkpoint(tmp_path):
    run, spoilt = open_folder(str(tmp_path)), []

    def spoil(number, engine):
        if number == 6 and not spoilt:
            spoilt.append(next(iter(engine.fragments())).tensors["ema"].fill_(float("inf")))

    engine, seen, said = train(run, spoil=spoil)
    assert seen == [1, 2, 3, 4, 5, 6, 5, 6, 7, 8]
    assert any("rollback 1 of 2: ema of model." in line and "not finite at step 6" in line for line in said)
    assert all(torch.isfinite(part).all() for part in state_of(engine).values())


def test_a_checkpoint_is_put_off_while_steps_are_skipped(tmp_path):
    config = tiny_config(train={**TRAIN, "steps": 4, "checkpoint_every_steps": 1})
    run = open_folder(str(tmp_path))
    _, _, said = train(run, spoilt=(2, 4), salts=(0,), config=config)
    assert complete_steps(run) == [1, 3, 4], "the last step always has one"
    assert [row["skipped"] for row in rows(run)] == [0, 1, 0, 1]
    assert rows(run)[1]["loss"] is None and "skipped steps 1" in said[-1]


def windows(*skipped: int) -> list[Skips]:
    """Windows of ten steps each."""
    return [Skips(10 * number, 10 * number + 10, count, 0, count) for number, count in enumerate(skipped)]


@pytest.mark.parametrize(
    ("skipped", "since"),
    [((2, 2, 0, 0), None), ((3, 2, 0), 0), ((0, 3, 2), 10), ((3, 0, 2), None), ((0, 0, 9), 20), ((4, 0, 4, 1), 20)],
)
def test_skipped_steps_count_within_a_window_and_trouble_begins_with_the_first(skipped, since):
    guard = SkipGuard(Guard(skipped_steps=4, window_steps=20))
    found = None
    try:
        for window in windows(*skipped):
            guard.add(window)
    except UnstableError as trouble:
        found = trouble.since
    assert found == since


@pytest.mark.parametrize(("skipped", "last", "ends_well"), [(6, False, True), (5, True, True), (6, True, False)])
def test_a_run_that_skipped_most_of_its_last_steps_does_not_end_well(skipped, last, ends_well):
    guard = SkipGuard(Guard(skipped_steps=10))
    with nullcontext() if ends_well else pytest.raises(UnstableError, match="6 of steps 1 to 10 skipped"):
        guard.add(Skips(0, 10, skipped), last=last)


def test_a_resumed_run_knows_the_windows_before():
    guard = SkipGuard(Guard(skipped_steps=4, window_steps=20), windows(0, 3))
    with pytest.raises(UnstableError, match=r"5 of steps 11 to 30 skipped"):
        guard.add(Skips(20, 30, 2, 0, 2))


def test_the_newest_salt_of_the_steps_before_decides():
    salts = [(30, 1), (20, 2)]
    seeds = [salted(7, salts, step) for step in (19, 20, 29, 30, 99)]
    assert seeds[0] == 7 and len(set(seeds)) == 2 and len(set(seeds[1:])) == 1
    assert salted(7, salts[:1], 30) != seeds[1]


@pytest.mark.slow
def test_a_resume_counts_the_steps_skipped_before_it(tmp_path):
    run = open_folder(str(tmp_path))
    train(run, spoilt=(3, 5), salts=(0,), stop=4)
    assert complete_steps(run) == [2, 4]
    _, seen, said = train(run, spoilt=(3, 5), salts=(0,))
    assert seen == [5, 3, 4, 5, 6, 7, 8]
    assert any("going back to step 2" in line and "2 of steps 3 to 5 skipped" in line for line in said)
