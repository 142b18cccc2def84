"""The demo's claims: the headline label takes learning, and reconstructions are recognised. Data as `make demo` has."""

import re
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from soda_dist.config.load import load_config
from soda_dist.data.sources import parse_options
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.evaluation import LocalPool, evaluate
from soda_dist.evaluation.model_sources import Checkpoint
from soda_dist.evaluation.worker import load_models
from soda_dist.runs.folder import write_config
from tests.learn.recognition import RECONSTRUCTED, Recognition, judge_of, recognised, reconstructed
from tests.learn.scenes import train, write_scenes

SECTION = "The demo, by the loop without Ray"
SEEDS = (0, 1, 2)
AHEAD = 0.1
"""Points of top-1 accuracy by which the trained encoder beats the untrained one and raw pixels."""
REAL, RECOGNISED = 0.95, 0.8
"""Shares of real scenes and of reconstructions whose hue and shape are named rightly."""


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    (options,) = re.findall(r"prepare_data\.py synthetic --data \S+ (.*)", makefile)
    chosen = parse_options("synthetic", options.split()).model_dump(exclude_unset=True)
    return write_scenes(tmp_path_factory.mktemp("demo"), **chosen)


class Measured(NamedTuple):
    """A seed's run."""

    top1: dict[str, float]
    real: Recognition
    found: Recognition


@pytest.fixture(scope="module", params=SEEDS)
def measured(
    request: pytest.FixtureRequest, scenes: Folder, tmp_path_factory: pytest.TempPathFactory, results
) -> Measured:
    seed = request.param
    config = load_config("demo", ("scale.engine=torch", f"seed={seed}"))
    run = open_folder(str(tmp_path_factory.mktemp(f"seed{seed}")))
    write_config(run, config)
    cpu = time.process_time()
    train(config, scenes, run)
    cpu = time.process_time() - cpu
    began = time.monotonic()
    encoders = evaluate(run.uri, scenes.uri, "probe", LocalPool())["probe"]["encoders"]
    top1 = {name: scores["estimates"]["top1"]["value"] for name, scores in encoders.items()}
    models = load_models(Checkpoint(run, config.train.steps, True), scenes.uri, config, "cpu")
    judge, real = judge_of(models)
    found = recognised(judge, *reconstructed(models, RECONSTRUCTED, config.sampling.guidance))
    figures = ", ".join(f"{name} {100 * value:.1f}" for name, value in top1.items())
    results.add(SECTION, f"seed {seed}: {config.train.steps} steps", f"{cpu:.0f} CPU seconds", cpu)
    results.add(SECTION, f"seed {seed}: linear probe of {config.evaluation.label}, %", figures, 0)
    results.add(SECTION, f"seed {seed}: real scenes named rightly", str(real), 0)
    seconds = time.monotonic() - began
    results.add(SECTION, f"seed {seed}: {RECONSTRUCTED} reconstructions named rightly", str(found), seconds)
    return Measured(top1, real, found)


@pytest.mark.learn
def test_the_headline_label_takes_learning(measured: Measured) -> None:
    assert measured.top1["trained"] > AHEAD + max(measured.top1["untrained"], measured.top1["pixels"])
    assert measured.real.both > REAL


@pytest.mark.learn
@pytest.mark.xfail(strict=True, reason="shape is learned later than in five minutes: docs/results.md, the demo")
def test_reconstructions_are_recognised(measured: Measured) -> None:
    assert measured.found.both > RECOGNISED
