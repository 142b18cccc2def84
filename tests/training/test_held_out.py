"""Validation while a run trains: what is measured when, pictures, and a training that it does not touch."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from soda_dist.config.load import with_fields
from soda_dist.data.shards import read_manifest
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.errors import UserError
from soda_dist.runs.metrics_log import METRICS, read_lines
from soda_dist.training.build import build_objective, torch_engine
from soda_dist.training.context import LocalContext
from soda_dist.training.early_stop import Patience
from soda_dist.training.held_out import HeldOut
from soda_dist.training.loop import fit
from soda_dist.training.validation import Findings, Validation
from tests.evaluation.small_run import small_data
from tests.tiny import feed, tiny_config
from tests.training.test_engine import engine_of

WATCHED = {"validation_every_steps": 2, "stop": {"split": "test", "images": 20}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    path = tmp_path_factory.mktemp("held_out")
    small_data(path)
    return open_folder(str(path))


def trained(place: Path, data: Folder, **train: object) -> Folder:
    """A run of six steps by a model with dropout and batch norm, with the validation that its configuration wants."""
    config, run = tiny_config(train=train, encoder={"norm": "batch"}), open_folder(str(place))
    validation = Validation(config, data, read_manifest(data), None, LocalContext()) if train else None
    torch.manual_seed(7)
    fit(LocalContext(), engine_of(config), config, feed(config), run, 100, validation=validation)
    return run


def test_training_is_bit_identical_with_and_without(tmp_path: Path, data: Folder) -> None:
    plain, watched = trained(tmp_path / "plain", data), trained(tmp_path / "watched", data, **WATCHED)
    for name in ("state-00000-of-00001-00000.safetensors", "buffers.safetensors", "model.safetensors"):
        assert plain.read(f"checkpoints/000000006/{name}") == watched.read(f"checkpoints/000000006/{name}")
    before, after = read_lines(plain, METRICS), read_lines(watched, METRICS)
    assert [line["loss"] for line in before] == [line["loss"] for line in after]
    found = {line["step"]: line["validation_loss"] for line in after if "validation_loss" in line}
    assert list(found) == [2, 4, 6] and len(set(found.values())) == 3
    assert not any("stopped" in line for line in after)
    pictures = [f"validation/{step:09d}.png" for step in (2, 4, 6)]
    assert sorted(entry.name for entry in watched.list("validation/")) == pictures
    assert not plain.list("validation/")
    again = trained(tmp_path / "again", data, **WATCHED)
    assert [again.read(name) for name in pictures] == [watched.read(name) for name in pictures]


@pytest.mark.parametrize("method", ["soda", "unconditional", "encdec"])
def test_a_picture_shows_the_rows_and_depends_on_the_weights(method: str, data: Folder) -> None:
    none = {} if method == "soda" else {"layer_mask_rate": 0.0, "guidance_mask_rate": 0.0}
    config = tiny_config(train=WATCHED, method=method, denoiser=none)
    engine = torch_engine(config, build_objective(config))
    validation = Validation(config, data, read_manifest(data), None, LocalContext())
    before = torch.get_rng_state()
    found = validation.measure(engine, ["loss"], picture=True)
    assert torch.equal(before, torch.get_rng_state())
    assert found == validation.measure(engine, ["loss"], picture=True)
    with torch.no_grad():
        for piece in engine.fragments():
            piece.tensors["ema"].add_(0.1)
    changed = validation.measure(engine, ["loss"], picture=True)
    assert changed.values != found.values and found.picture and changed.picture
    one, other = (np.asarray(Image.open(BytesIO(each.picture)).convert("RGB")) for each in (found, changed))
    third = one.shape[1] // 3
    assert (one[:, : 2 * third] == other[:, : 2 * third]).all(), "sources and targets are the data's"
    assert (one[:, 2 * third :] != other[:, 2 * third :]).any(), "reconstructions are the model's"


class Asked:
    """Notes what is asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[str], bool]] = []

    def measure(self, engine, metrics, *, picture) -> Findings:
        self.asked.append((list(metrics), picture))
        return Findings(dict.fromkeys(metrics, 1.0), b"PNG" if picture else None)


def test_one_measurement_serves_validation_and_stop(tmp_path: Path) -> None:
    stop = {"metric": "loss", "every_steps": 3, "split": "val"}
    config = tiny_config(train={"validation_every_steps": 2, "online_probe": True, "stop": stop})
    asked, run = Asked(), open_folder(str(tmp_path))
    held_out = HeldOut(asked, Patience(), config, run, None, config.train.steps)
    facts = [held_out.facts(step, None) for step in (1, 2, 3, 6)]  # type: ignore[arg-type]
    assert asked.asked == [(["loss", "probe_accuracy"], True), (["loss"], False), (["loss", "probe_accuracy"], True)]
    both = {"validation_loss": 1.0, "validation_probe_accuracy": 1.0}
    assert facts == [{}, both, {"validation_loss": 1.0, "stopped": False}, {**both, "stopped": False}]
    assert [entry.name for entry in run.list("validation/")] == [f"validation/{step:09d}.png" for step in (2, 6)]


def test_the_test_split_may_be_watched_but_the_training_split_may_not() -> None:
    config = tiny_config(train=WATCHED)
    with pytest.raises(UserError, match=r"train\.stop\.split: got train; .*not trained on"):
        with_fields(config, {"train.stop.split": "train"})
