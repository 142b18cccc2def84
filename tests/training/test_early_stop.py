"""An end at convergence: when patience ends, what a run says and keeps, and the metrics of held-out images."""

import json
from pathlib import Path

import pytest
import torch

from soda_dist.config.load import with_fields
from soda_dist.config.sections import Stop
from soda_dist.data.shards import read_manifest
from soda_dist.data.storage.folder import open_folder
from soda_dist.errors import UserError
from soda_dist.runs.folder import claim, complete_steps, stopped_step
from soda_dist.runs.metrics_log import METRICS, read_lines
from soda_dist.training.build import build_objective, torch_engine
from soda_dist.training.checkpoint import read_patience
from soda_dist.training.context import LocalContext
from soda_dist.training.early_stop import Patience, restored
from soda_dist.training.loop import fit
from soda_dist.training.validation import Findings, Validation
from tests.evaluation.small_run import small_data
from tests.tiny import feed, tiny_config
from tests.training.labelled import CLASS
from tests.training.test_engine import engine_of

EVERY = {"metric": "loss", "patience": 2, "every_steps": 1, "images": 16}


def config_of(**stop: object):
    return tiny_config(train={"steps": 8, "log_every_steps": 4, "checkpoint_every_steps": 3, "stop": {**EVERY, **stop}})


class Scripted:
    """Gives the values of a list by the number of updates."""

    def __init__(self, *values: float) -> None:
        self.values, self.asked = values, 0

    def measure(self, engine, metrics, *, picture) -> Findings:
        self.asked += 1
        return Findings(dict.fromkeys(metrics, self.values[engine.updates - 1]))


def train(place: Path, validation: Scripted, until: int | None = None, config=None) -> list[str]:
    """Train as a start of the run does; returns what was said."""
    config, said = config or config_of(), []
    run = open_folder(str(place))
    claim(run, config)
    fit(LocalContext(say=said.append), engine_of(config), config, feed(config), run, 100, until, validation)
    return said


@pytest.mark.parametrize(
    ("metric", "delta", "values", "at"),
    [
        ("loss", 0.0, (3, 2, 2, 2), 4),
        ("loss", 0.0, (3, 2, 2, 1, 1, 1), 6),
        ("loss", 0.5, (3, 2.6, 2.4, 2.4, 2.4), 5),
        ("retrieval", 0.0, (0.1, 0.2, 0.2, 0.1), 4),
        ("retrieval", 0.0, (0.1, float("nan"), 0.2, 0.2, float("inf")), 5),
        ("retrieval", 0.0, (0.1, 0.2, 0.3, 0.4, 0.5), None),
        ("loss", 0.0, (float("nan"), float("nan")), 2),
    ],
)
def test_patience_ends_after_evaluations_without_improvement(metric, delta, values, at) -> None:
    patience, settings = Patience(), Stop(metric=metric, patience=2, min_delta=delta)
    ends = []
    for number, value in enumerate(values, 1):
        patience.add(float(value), settings)
        ends += [number] if patience.stopped else []
        patience = restored(json.loads(json.dumps(patience.state())), "stop.json")
    assert (ends[0] if ends else None) == at


def test_a_damaged_state_is_refused() -> None:
    for state in ([], {"best": "x", "since": 0, "stopped": False}, {"best": None, "since": -1, "stopped": False}):
        with pytest.raises(UserError, match=r"stop\.json: got an invalid field"):
            restored(state, "stop.json")


def test_a_run_that_stopped_is_finished_and_says_so(tmp_path: Path) -> None:
    values = Scripted(5, 4, 4.5, 4.2, 1, 1, 1, 1)
    said = train(tmp_path, values)
    run = open_folder(str(tmp_path))
    assert complete_steps(run) == [3, 4] and stopped_step(run) == 4
    lines = read_lines(run, METRICS)
    assert [(line["step"], line["validation_loss"], line["stopped"]) for line in lines] == [
        (1, 5, False), (2, 4, False), (3, 4.5, False), (4, 4.2, True),
    ]  # fmt: skip
    assert said[-1] == "stopped at step 4 of 8: loss no longer improves on 4"
    again = train(tmp_path, values)
    assert values.asked == 4 and complete_steps(run) == [3, 4] and stopped_step(run) == 4
    assert "resuming from step 4" in again[0] and len(read_lines(run, METRICS)) == 4


def test_an_interrupted_run_stops_at_the_same_step(tmp_path: Path) -> None:
    values = (5, 4, 4.5, 3.9, 4, 4, 1, 1)
    train(tmp_path / "straight", Scripted(*values))
    train(tmp_path / "resumed", Scripted(*values), until=3)
    patience = read_patience(open_folder(str(tmp_path / "resumed")), 3)
    assert patience == Patience(best=4, since=1, stopped=False)
    train(tmp_path / "resumed", Scripted(*values))
    assert [stopped_step(open_folder(str(tmp_path / name))) for name in ("straight", "resumed")] == [6, 6]


def test_a_run_without_it_has_no_state(tmp_path: Path) -> None:
    config = tiny_config(train={"steps": 1})
    train(tmp_path, None, config=config)
    assert read_patience(open_folder(str(tmp_path)), 1) is None and stopped_step(open_folder(str(tmp_path))) is None


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("held_out")
    small_data(path)
    return path


@pytest.mark.parametrize("metric", ["loss", "retrieval", "effective_rank", "probe_accuracy"])
def test_metrics_of_held_out_images_depend_on_the_weights_alone(metric: str, data: Path) -> None:
    probed = {"online_probe": True, "online_probe_label": "bright"}
    config = tiny_config(
        train={**probed, "stop": {"metric": metric, "split": "test", "images": 20}},
        evaluation={"test_split": "other"},
    )
    folder = open_folder(str(data))
    labels = CLASS.__class__(("bright",), 2, 1)
    engine = torch_engine(config, build_objective(config, labels))
    before = torch.get_rng_state()
    validation = Validation(config, folder, read_manifest(folder), labels, LocalContext())
    first, second = (validation.measure(engine, [metric]).values[metric] for _ in range(2))
    assert first == second and torch.equal(before, torch.get_rng_state())
    assert engine.objective.training, "the engine's own network is left alone"
    low, high = {"loss": (0.3, 3), "effective_rank": (1, 12)}.get(metric, (0, 1))
    assert low <= first <= high
    with torch.no_grad():
        for piece in engine.fragments():
            piece.tensors["ema"].mul_(0.0)
    changed = validation.measure(engine, [metric]).values[metric]
    assert changed != first or metric == "probe_accuracy"
    expected = {"retrieval": 1 / 19, "effective_rank": 0.0}
    if metric in expected:
        assert changed == pytest.approx(expected[metric]), "latents of zero weights are equal"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"train.stop.split": "train"}, r"train\.stop\.split: got train"),
        ({"train.stop.split": "test"}, "neither trained on nor tested on"),
        ({"train.stop.metric": "probe_accuracy"}, r"set train\.online_probe=true"),
        ({"train.stop.metric": "retrieval", "method": "palette", "denoiser.layer_mask_rate": 0.0}, "with an encoder"),
        ({"train.stop.patience": 0}, r"train\.stop\.patience"),
    ],
)
def test_what_does_not_go_together_is_refused(fields: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        with_fields(config_of(), fields)
