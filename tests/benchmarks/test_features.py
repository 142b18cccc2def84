"""The benchmark of feature extraction: both sides make the same latents, and the table says what was measured."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from soda_dist.benchmarks import features
from soda_dist.benchmarks.features import (
    CentralViews,
    Initial,
    encoded,
    measure_features,
    one_thread,
    plain_latents,
)
from soda_dist.config import RunConfig
from soda_dist.config.load import dump_config
from soda_dist.data.storage.folder import open_folder
from soda_dist.errors import UserError
from soda_dist.evaluation.features.extraction import collect
from soda_dist.evaluation.pieces import plan_pieces
from soda_dist.evaluation.worker import load_models
from soda_dist.parallel.local_pool import LocalPool
from soda_dist.parallel.pool import Held
from tests.evaluation.small_run import prepare, small_data
from tests.tiny import tiny_config


def _preset(path: Path, config: RunConfig) -> str:
    (path / "tiny.yaml").write_text(dump_config(config))
    return str(path / "tiny.yaml")


def _sound_data(path: Path) -> str:
    """50 training rows, 10 of them beyond what is measured, all readable."""
    prepare(str(path / "data"), {"train": [[20, 20], [10]], "test": [[4]]}, {})
    return str(path / "data")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("workers", features.WORKERS)
def test_both_sides_make_the_same_latents(tmp_path: Path, workers: int, precision: str) -> None:
    config = tiny_config(evaluation={"batch": 16, "baselines": False}, train={"precision": precision})
    # The images have the size of a view, so that no resampling differs.
    config = config.model_copy(update={"data": config.data.model_copy(update={"source_size": 20})})
    models = load_models(Initial(config), _sound_data(tmp_path), config, "cpu")
    reader = models.reader["train"]
    pieces = plan_pieces("train", reader.groups, np.arange(40), 16)
    ours = collect(LocalPool(setup=Held(models)), open_folder(str(tmp_path / "latents")), pieces, lambda _: None)
    views = CentralViews(encoded(reader, pieces), config.data)
    theirs = plain_latents(models.model.encoder, iter(DataLoader(views, 16, num_workers=workers)), config)
    assert theirs.shape == (40, 12) and theirs.std() > 0.01
    near = 1e-5 if precision == "fp32" else 2e-2
    torch.testing.assert_close(torch.from_numpy(ours.arrays["trained"]), theirs, rtol=near, atol=near)


@pytest.mark.ray
@pytest.mark.long
def test_a_small_measurement_names_the_sides_and_their_ratios(cluster: None, tmp_path: Path) -> None:
    said: list[str] = []
    results = measure_features(
        _preset(tmp_path, tiny_config()), _sound_data(tmp_path), ["evaluation.max_train_images=40"], said.append
    )
    one, two = results
    assert [result["name"].rpartition(", ")[2] for result in results] == ["1 actor", "2 actors"]
    assert list(one["rounds"]) == ["1 actor", "DataLoader, num_workers=0", "DataLoader, num_workers=1"]
    assert list(two["rounds"]) == ["2 actors", "1 actor"] and one["rounds"]["1 actor"] == two["rounds"]["1 actor"]
    assert one["limit"] == 0.9
    for result in results:
        ours, *others = result["median"].values()
        assert ours > 0 and result["ratio"] == pytest.approx(ours / max(others), rel=0.01)
        assert result["facts"]["seconds to start"] > 0
    assert said[0].startswith("40 images per round in 2 chunks, ")
    assert [line.rpartition(": ")[2] for line in said if "threads of each" in line] == ["1", "1"]


def test_images_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    small_data(tmp_path / "data")
    config = tiny_config(evaluation={"batch": 16, "baselines": False})
    models = load_models(Initial(config), str(tmp_path / "data"), config, "cpu")
    pieces = plan_pieces("train", models.reader["train"].groups, None, 16)
    wanted = "--data: got 1 images that cannot be read, such as train/13.png"
    with pytest.raises(UserError, match=wanted):
        features._extraction_rate(LocalPool(setup=Held(models)), str(tmp_path / "latents"), pieces, 0)


def test_this_process_computes_on_one_thread_for_as_long_as_it_is_measured() -> None:
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("preset", "override", "says"),
    [
        ("cifar10", "evaluation.actors=3", "evaluation.actors: got 3"),
        ("cifar10", "evaluation.baselines=true", "evaluation.baselines: got True"),
        ("cifar10", "evaluation.latents=denoiser", "evaluation.latents: got denoiser"),
        ("cifar10", "data.pose=pixels", "data.pose: got pixels"),
        ("nmr", "train.steps=3", "data.pose: got cameras"),
        ("nope", "train.steps=3", "--preset: got nope"),
    ],
)
def test_what_a_plain_loop_cannot_do_is_refused(preset: str, override: str, says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        measure_features(preset, None, [override], lambda _: None)


def test_a_method_without_an_encoder_is_refused(tmp_path: Path) -> None:
    config = tiny_config(method="unconditional", denoiser={"layer_mask_rate": 0, "guidance_mask_rate": 0})
    with pytest.raises(UserError, match="method: got unconditional; allowed: soda, encdec"):
        features.check_plain(config)
