"""A sweep's trials: drawn from its seed alone, trained for real, judged by their probes."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from soda_dist.config import load_config
from soda_dist.config.schema import RunConfig
from soda_dist.config.search import Search, load_search
from soda_dist.data.storage.folder import open_folder
from soda_dist.errors import UserError
from soda_dist.evaluation.task_runner import evaluate
from soda_dist.runs.folder import write_config
from soda_dist.training.context import LocalContext
from soda_dist.training.loop import fit
from tests.evaluation.small_run import prepare
from tests.sizes import sized
from tests.tiny import feed, tiny_config
from tests.training.test_engine import engine_of

SPACE = {
    "encoder.lr_ratio": {"log_uniform": (0.5, 4.0)},
    "denoiser.guidance_mask_rate": {"uniform": (0.0, 0.3)},
    "denoiser.layer_mask_rate": {"choice": (0.0, 0.15)},
}


def search_of(**fields) -> Search:
    return Search.model_validate({"trials": 3, "steps": 4, "first_rung": 2, "space": SPACE, **fields})


def test_trials_are_a_function_of_the_search_and_lie_in_its_ranges():
    from soda_dist.distributed.tune import draw_candidates

    many = search_of(trials=400)
    drawn = draw_candidates(tiny_config(), many)
    assert drawn == draw_candidates(tiny_config(), many)
    assert drawn != draw_candidates(tiny_config(), search_of(trials=400, seed=1))
    ratios = np.log([config.encoder.lr_ratio for _, config in drawn])
    assert np.log(0.5) <= ratios.min() and ratios.max() <= np.log(4)
    assert abs(np.mean(ratios) - np.log(np.sqrt(2))) < 4 * np.log(8) / np.sqrt(12 * 400)
    masks = [config.denoiser.layer_mask_rate for _, config in drawn]
    assert set(masks) == {0.0, 0.15} and 140 < masks.count(0.15) < 260
    assert all(config.train.steps == 4 for _, config in drawn)


def test_rungs_grow_by_the_reduction_and_end_with_the_run():
    assert search_of(steps=1000, first_rung=100, reduction=3).rungs == [100, 300, 900, 1000]
    assert search_of(steps=4, first_rung=4).rungs == [4]


def test_the_shipped_search_fits_the_demo():
    from soda_dist.distributed.tune import draw_candidates

    search = load_search("ratio_guidance_masking")
    assert len(draw_candidates(load_config("demo"), search)) == search.trials


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("trials: 2\nsteps: 4\nfirst_rung: 2\nspace: {a: {uniform: [1, 0]}}", "low < high"),
        ("trials: 2\nsteps: 4\nfirst_rung: 2\nspace: {a: {}}", "one of uniform, log_uniform, choice"),
        ("trials: 2\nsteps: 4\nfirst_rung: 9\nspace: {a: {choice: [1]}}", "first_rung: got 9 with steps=4"),
        ("trials: 2\nsteps: 4\nspace: {a: {choice: [1]}}", "first_rung"),
        ("trails: 2", "trails: got an unknown key"),
    ],
)
def test_a_wrong_search_is_one_line(tmp_path, text, says):
    (tmp_path / "search.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        load_search(str(tmp_path / "search.yaml"))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_field_that_does_not_exist_is_named():
    from soda_dist.distributed.tune import draw_candidates

    with pytest.raises(UserError, match=r"encoder\.ratio: got an unknown key"):
        draw_candidates(tiny_config(), search_of(space={"encoder.ratio": {"choice": (1.0,)}}))


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    from soda_dist.distributed.tune import sweep

    (tmp_path / "trials").symlink_to("/etc")
    with pytest.raises(UserError, match="trials: got a symbolic link to /etc"):
        sweep(tiny_config(), search_of(), "data", str(tmp_path), [].append)


BEST = 1.5
"""An accuracy that no other trial reaches."""


def leave_first_rung(configs: Sequence[RunConfig], sweep: Path, data: str) -> None:
    """Trials as a stopped sweep leaves them, trained and judged at their first rung, where the first was the best."""
    for number, config in enumerate(configs):
        run = open_folder(f"{sweep}/trials/{number:03d}")
        write_config(run, config)
        fit(LocalContext(), engine_of(config), config, feed(config), run, rows=96, until=2)
        evaluate(run.uri, data, "probe", step="2")
        if number == 0:
            run.write_json("eval/2/probe.json", {**run.read_json("eval/2/probe.json"), "value": BEST})


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
@sized("stopped_before", True, long=False)
def test_a_small_sweep_trains_judges_and_chooses(stopped_before, cluster, tmp_path):
    """The short form resumes a sweep that was stopped after its first rung, whose trial 0 no other one can beat."""
    from soda_dist.distributed.tune import draw_candidates, sweep

    data, place = str(tmp_path / "data"), tmp_path / "sweep"
    prepare(data, {"train": [[16] * 6], "test": [[16] * 2]}, {})
    config = tiny_config(scale={"engine": "torch", "data_memory_mb": 64}, evaluation={"actors": 1, "baselines": False})
    search = search_of(trials=2, guidance=(1.0, 2.0))
    if stopped_before:
        leave_first_rung([candidate for _, candidate in draw_candidates(config, search)], place, data)
    said: list[str] = []
    sweep(config, search, data, str(place), said.append)
    summary = json.loads((place / "trials.json").read_text())
    assert [trial["trial"] for trial in summary["trials"]] == [0, 1]
    for trial in summary["trials"]:
        assert trial["status"] in ("finished", "stopped")
        for rung, accuracy in trial["accuracy"].items():
            probe = json.loads((place / f"trials/{trial['trial']:03d}/eval/{rung}/probe.json").read_text())
            assert probe["value"] == accuracy
    assert max(trial["step"] for trial in summary["trials"]) == 4
    if stopped_before:
        assert [(trial["status"], trial["step"]) for trial in summary["trials"]] == [("finished", 4), ("stopped", 2)]
        assert summary["trials"][0]["accuracy"]["2"] == BEST and summary["best"] == 0
    best = load_config(str(place / "best.yaml"))
    fields = summary["trials"][summary["best"]]["fields"]
    assert best.encoder.lr_ratio == pytest.approx(fields["encoder.lr_ratio"])
    assert best.sampling.guidance in (1.0, 2.0)
    assert {score["guidance"] for score in summary["guidance"]} == {1.0, 2.0}
    assert (place / "trials.png").read_bytes().startswith(b"\x89PNG")
    assert any(line.startswith("best trial") for line in said)

    with pytest.raises(UserError, match="the folder of the same search"):
        sweep(config, search_of(trials=3), data, str(place), said.append)
    if not stopped_before:
        before = (place / "trials.json").read_bytes()
        sweep(config, search, data, str(place), said.append)
        assert (place / "trials.json").read_bytes() == before, "a rerun finds everything done"
