"""A run's folder: what a second attempt may change, which checkpoints count, and how a step is named."""

from pathlib import Path

import pytest

from soda_dist.config import RunConfig, load_config
from soda_dist.config.load import with_fields
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.errors import UserError
from soda_dist.runs.folder import (
    attempts,
    changed_rate,
    checkpoint_folder,
    chosen_steps,
    claim,
    complete_steps,
    evaluation_folder,
    read_config,
    record_end,
    record_rollback,
    rollbacks,
    write_config,
)

SMALL = str(Path(__file__).parents[1] / "config" / "small.yaml")


def small(*overrides: str) -> RunConfig:
    """A configuration of 600 steps, of any micro-batch that holds 8 pairs, with some fields changed."""
    return load_config(SMALL, ["train.norm_batch=8", *overrides])


@pytest.fixture
def run(tmp_path: Path) -> Folder:
    """The empty folder of a run."""
    return open_folder(str(tmp_path / "run"))


def checkpoint(run: Folder, step: int, complete: bool = True) -> None:
    """A checkpoint of one file, whose manifest comes last if at all."""
    folder = checkpoint_folder(run, step)
    folder.write("model.safetensors", b"weights")
    if complete:
        folder.write("manifest.json", b"{}")


def test_the_first_claim_stores_the_configuration_and_the_attempt(run: Folder) -> None:
    config = small("optim.lr=3e-3")
    assert attempts(run) == []
    claim(run, config)
    assert read_config(run) == config
    assert [entry.name for entry in run.files()] == ["config.yaml", "provenance.json"]
    (attempt,) = attempts(run)
    assert {"time", "command"} <= set(attempt)


def test_the_end_of_an_attempt_is_noted_once_and_in_the_latest(run: Folder) -> None:
    record_end(run, "nothing was claimed")
    assert attempts(run) == []
    for reason in ("interrupted", "failed: loss is nan"):
        claim(run, small())
        record_end(run, reason)
        record_end(run, "again")
    assert [entry["ended"]["reason"] for entry in attempts(run)] == ["interrupted", "failed: loss is nan"]


@pytest.mark.parametrize(
    "free",
    [
        ("train.steps=900",),
        ("train.log_every_steps=7", "train.checkpoint_every_steps=9", "train.keep_checkpoints=5"),
        ("train.micro_batch=16",),
        ("train.max_unreadable=0.5",),
        ("train.guard.skipped_steps=1", "train.guard.window_steps=9", "train.guard.rollbacks=0"),
        ("scale.workers=2",),
        ("sampling.steps=7",),
        ("evaluation.batch=8",),
    ],
    ids=" ".join,
)
def test_a_second_attempt_may_change_what_the_weights_do_not_depend_on(free: tuple[str, ...], run: Folder) -> None:
    claim(run, small())
    claim(run, small(*free))
    assert read_config(run) == small(*free) != small()
    assert len(attempts(run)) == 2


def test_an_attempt_on_other_data_is_refused_unless_accepted(run: Folder) -> None:
    one, other = ({"uri": "data", "digest": letter * 64, "rows": 9} for letter in "ab")
    claim(run, small())  # by a release that recorded no data
    claim(run, small(), one)
    claim(run, small(), {**one, "uri": "a copy of it"})
    with pytest.raises(UserError, match=r"--data: got data with digest bbb.* trained on aaa.*--accept-changed-data"):
        claim(run, small(), other)
    assert len(attempts(run)) == 3
    claim(run, small(), other, accept_data=True)
    claim(run, small(), other)
    assert [(a.get("data") or {}).get("digest", "")[:1] for a in attempts(run)] == ["", "a", "a", "b", "b"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("optim.weight_decay=0.5", "optim.weight_decay: got 0.5, but the run at {uri} has 0.05; "),
        ("seed=7", "seed: got 7, but the run at {uri} has 0; "),
        ("data.source_size=16", "data.source_size: got 16, but the run at {uri} has 32; "),
        ("train.global_batch=32", "train.global_batch: got 32, but the run at {uri} has 64; "),
    ],
)
def test_another_value_that_the_weights_depend_on_is_refused(change: str, says: str, run: Folder) -> None:
    claim(run, small())
    before = {entry.name: run.read(entry.name) for entry in run.list()}
    with pytest.raises(UserError) as caught:
        claim(run, small(change))
    expected = says.format(uri=run.uri, before=small())
    assert str(caught.value) == f"{expected}allowed: the run's own value; use another --run"
    assert {entry.name: run.read(entry.name) for entry in run.list()} == before, "nothing is written"


def test_the_learning_rate_may_change_and_the_change_is_recorded(run: Folder) -> None:
    claim(run, small("optim.lr=0.5"))
    checkpoint(run, 40)
    claim(run, small("optim.lr=0.5"))
    assert changed_rate(run) is None
    claim(run, small("optim.lr=0.25"))
    assert read_config(run).optim.lr == 0.25
    assert attempts(run)[-1]["changed"] == {"field": "optim.lr", "from": 0.5, "to": 0.25, "step": 40}
    assert changed_rate(run) == "optim.lr: 0.25 from step 40 on, 0.5 before"
    claim(run, small("optim.lr=0.25"))
    assert "changed" not in attempts(run)[-1] and changed_rate(run) is None


def test_a_rollback_is_noted_with_a_salt_of_its_own(run: Folder) -> None:
    claim(run, small())
    assert [record_rollback(run, step, "why") for step in (30, 20)] == [1, 2]
    claim(run, small())
    assert record_rollback(run, 20, "again") == 1
    assert [(each["step"], each["salt"], each["reason"]) for each in rollbacks(run)] == [
        (30, 1, "why"), (20, 2, "why"), (20, 3, "again"),
    ]  # fmt: skip
    assert [each["salt"] for each in rollbacks(run, this_start=True)] == [3]


def test_what_the_first_start_resolved_is_kept(run: Folder) -> None:
    asked = small("train.steps=30", "optim.warmup_steps=50")
    first = claim(run, asked)
    assert first.optim.warmup_steps == 3 and read_config(run) == first
    assert attempts(run)[-1]["asked"] == {"optim.warmup_steps": 50}
    write_config(run, with_fields(first, {"train.precision": "bf16"}))  # as its workers do
    longer = claim(run, small("train.steps=1000", "optim.warmup_steps=50"))
    assert (longer.train.precision, longer.optim.warmup_steps, longer.train.steps) == ("bf16", 3, 1000)
    assert read_config(run) == longer
    for change in ("train.precision=fp32", "optim.warmup_steps=60"):
        with pytest.raises(UserError, match="but the run at"):
            claim(run, small("train.steps=30", "optim.warmup_steps=50", change))


def test_a_run_whose_precision_was_never_resolved_takes_any(run: Folder) -> None:
    claim(run, small())
    assert claim(run, small("train.precision=fp32")).train.precision == "fp32"


def test_a_folder_without_a_configuration_is_no_run(run: Folder) -> None:
    with pytest.raises(UserError, match=r"--data: got .*/run, which has no config\.yaml; allowed: the folder of a run"):
        read_config(run, "--data")


def test_a_checkpoint_without_a_manifest_does_not_count(run: Folder) -> None:
    assert complete_steps(run) == []
    for step in (1000, 90, 200):
        checkpoint(run, step)
    checkpoint(run, 3000, complete=False)
    checkpoint_folder(run, 4000).write("state/manifest.json", b"of a part")
    assert complete_steps(run) == [90, 200, 1000]


def test_a_step_is_named_by_its_number_or_its_place(run: Folder) -> None:
    for step in (300, 20):
        checkpoint(run, step)
    checkpoint(run, 400, complete=False)
    assert chosen_steps(run, "all") == [20, 300]
    assert chosen_steps(run, "latest") == [300]
    assert chosen_steps(run, "20") == chosen_steps(run, "020") == [20]
    for wanted in ("400", "21", "-20", "first", ""):
        with pytest.raises(UserError) as caught:
            chosen_steps(run, wanted)
        assert (caught.value.field, caught.value.allowed) == ("--step", "20, 300, latest, all")


@pytest.mark.parametrize("wanted", ["latest", "all", "5"])
def test_a_run_without_a_complete_checkpoint_has_no_step(wanted: str, run: Folder) -> None:
    checkpoint(run, 5, complete=False)
    with pytest.raises(UserError, match=r"--run: got .*, which has no complete checkpoint; .*; pretrain first"):
        chosen_steps(run, wanted)


def test_results_with_and_without_ema_lie_apart(run: Folder) -> None:
    assert evaluation_folder(run, 30, ema=True).uri == f"{run.uri}/eval/30"
    assert evaluation_folder(run, 30, ema=False).uri == f"{run.uri}/eval/30/without-ema"
