"""Which checkpoints stay: the latest, those of some steps, the best by a metric, also after a resume."""

import json
from pathlib import Path

import pytest

from soda_dist.config.load import with_fields
from soda_dist.config.sections import Train
from soda_dist.data.storage.folder import open_folder
from soda_dist.errors import UserError
from soda_dist.runs.folder import complete_steps
from soda_dist.training.context import LocalContext
from soda_dist.training.keep import kept
from soda_dist.training.loop import fit
from tests.tiny import feed, tiny_config
from tests.training.test_early_stop import Scripted
from tests.training.test_engine import engine_of

NAN = float("nan")


@pytest.mark.parametrize(
    ("fields", "values", "stay"),
    [
        ({}, {}, {50, 60}),
        ({"keep_checkpoints": 1}, {}, {60}),
        ({"keep_checkpoints": 9}, {}, {10, 20, 30, 40, 50, 60}),
        ({"keep_every_steps": 20}, {}, {20, 40, 50, 60}),
        ({"keep_best": "loss"}, {10: 3.0, 20: 1.0, 30: 1.0, 40: 2.0}, {20, 50, 60}),
        ({"keep_best": "retrieval"}, {10: 0.3, 20: 0.1, 30: NAN, 70: 0.9}, {10, 50, 60}),
        ({"keep_best": "loss"}, {30: NAN}, {50, 60}),
        ({"keep_best": "loss", "keep_every_steps": 30, "keep_checkpoints": 1}, {10: 1.0, 20: 2.0}, {10, 30, 60}),
    ],
)
def test_the_rules_add_up(fields: dict, values: dict[int, float], stay: set[int]) -> None:
    assert kept([60, 10, 20, 30, 40, 50], Train(**fields), values) == stay


def config_of(**train: object):
    fields = {"steps": 7, "log_every_steps": 4, "checkpoint_every_steps": 1, "keep_checkpoints": 1, "stop": STOP}
    return tiny_config(train={**fields, **train})


STOP = {"split": "held_out", "images": 16}


def train(place: Path, validation: Scripted | None, until: int | None = None, **fields: object) -> list[int]:
    config, run = config_of(**fields), open_folder(str(place))
    fit(LocalContext(), engine_of(config), config, feed(config), run, 100, until, validation)
    return complete_steps(run)


def test_a_run_keeps_the_best_and_every_third(tmp_path: Path) -> None:
    """Each checkpoint is measured, without `validation_every_steps`; what was measured before a resume counts."""
    values = Scripted(5.0, 1.0, 4.0, 2.0, 0.5, 2.0, 3.0)
    assert train(tmp_path, values, 4, keep_best="loss", keep_every_steps=3) == [2, 3, 4]
    best = tmp_path / "checkpoints/best.json"
    assert json.loads(best.read_text()) == {"step": 2, "metric": "loss", "value": 1.0}
    assert train(tmp_path, values, 4, keep_best="loss") == [2, 3, 4] and values.asked == 4
    assert train(tmp_path, values, keep_best="loss", keep_every_steps=3) == [3, 5, 6, 7]
    assert json.loads(best.read_text())["step"] == 5


def test_what_was_measured_before_a_resume_is_not_forgotten(tmp_path: Path) -> None:
    values = Scripted(5.0, 1.0, 4.0, 2.0, 2.5, 2.0, 3.0)
    train(tmp_path, values, 3, keep_best="loss")
    assert train(tmp_path, values, keep_best="loss") == [2, 7]


def test_only_checkpoints_are_measured_for_it(tmp_path: Path) -> None:
    values = Scripted(*range(7))
    train(tmp_path, values, keep_best="loss", checkpoint_every_steps=3)
    assert values.asked == 3, "at 3, 6 and the last step"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"train.keep_every_steps": 3, "train.checkpoint_every_steps": 2},
            r"keep_every_steps: got 3 with .*=2; allowed",
        ),
        ({"train.keep_best": "probe_accuracy"}, r"train\.keep_best: got .* set train\.online_probe=true"),
        ({"train.keep_best": "loss", "train.stop.split": "test"}, r"stop\.split: got test; .* nor tested on"),
        ({"train.keep_best": "loss", "train.stop.split": "train"}, r"stop\.split: got train"),
        ({"train.keep_best": "retrieval", "method": "palette", "denoiser.layer_mask_rate": 0.0}, "with an encoder"),
        ({"train.keep_best": "psnr"}, r"keep_best: got 'psnr'"),
    ],
)
def test_what_does_not_go_together_is_refused(fields: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        with_fields(config_of(), fields)
