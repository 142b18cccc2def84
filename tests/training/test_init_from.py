"""`--init-from URI@STEP`: a new run begins with the EMA weights of another."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from soda_dist.data.storage.folder import open_folder
from soda_dist.errors import UserError
from soda_dist.models.lr_equalization import plain_state_dict
from soda_dist.runs.folder import attempts, claim, read_config
from soda_dist.training import checkpoint
from soda_dist.training.build import build_objective
from soda_dist.training.init_from import filling, initial_weights
from soda_dist.training.local_run import pretrain
from tests.evaluation.small_run import small_data
from tests.tiny import tiny_config
from tests.training.test_checkpoint import train

OTHER = {"seed": 5, "encoder": {"lr_ratio": 1.0}}
"""Another run's configuration: random weights and stored values differ, the weights in use have the same shapes."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run with checkpoints at steps 3 and 6."""
    place = tmp_path_factory.mktemp("source")
    run = open_folder(str(place))
    claim(run, tiny_config())
    train(run, tiny_config())
    return run.uri


@pytest.fixture
def run(tmp_path: Path):
    return open_folder(str(tmp_path / "run"))


@pytest.mark.parametrize(("asked", "step"), [("{}@3", 3), ("{}@latest", 6), ("{}", 6), ("{}/checkpoints/000000003", 3)])
def test_the_model_has_the_ema_weights_under_another_ratio(source, run, asked, step):
    found = initial_weights(run, asked.format(source))
    fill = filling(run, found)
    objective = build_objective(tiny_config(**OTHER), fill=fill)
    expected = load_file(f"{source}/checkpoints/{step:09d}/model.safetensors")
    plain = plain_state_dict(objective.model)
    assert plain.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(plain[name], value, rtol=1e-6, atol=1e-7, msg=name)
    assert found["step"] == (None if "checkpoints" in asked else step)


def test_a_model_of_another_shape_is_refused_by_its_first_parameter(source, run):
    fill = filling(run, initial_weights(run, f"{source}@3"))
    with pytest.raises(UserError) as caught:
        build_objective(tiny_config(denoiser={"base_channels": 16, "head_dim": 8}), fill=fill)
    line = str(caught.value)
    assert line.startswith(f"--init-from: got {source}@3, which has denoiser.") and "\n" not in line
    assert "the run's model, which has [" in line and line.endswith("use weights of the same architecture")
    with pytest.raises(UserError, match=r"which has no denoiser\S*; allowed: the run's model, which has \["):
        build_objective(tiny_config(denoiser={"attention_resolutions": (8, 16)}), fill=fill)
    with pytest.raises(UserError, match=r"which has denoiser\S* of \[.*; allowed: the run's model, which has none"):
        build_objective(tiny_config(denoiser={"attention_resolutions": ()}), fill=fill)


@pytest.mark.parametrize(
    ("asked", "says"),
    [("{}@4", r"--init-from|--step"), ("{}/nothing", "no complete checkpoint"), ("ftp://x/y@3", "ftp")],
)
def test_weights_that_do_not_exist_are_refused(source, run, asked, says):
    with pytest.raises(UserError, match=says):
        initial_weights(run, asked.format(source))


@pytest.mark.slow
def test_a_run_records_its_beginning_and_resumes_without_the_source(source, tmp_path, monkeypatch):
    data, place, moved = str(tmp_path / "data"), str(tmp_path / "run"), str(tmp_path / "source")
    small_data(Path(data))
    shutil.copytree(source, moved)
    said, config, save = [], tiny_config(seed=5, train={"trackers": ()}), checkpoint.save

    def save_and_stop(*args):
        save(*args)
        raise KeyboardInterrupt

    def start(init_from):
        return pretrain(config, data, place, device="cpu", init_from=init_from, say=said.append)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(checkpoint, "save", save_and_stop)
        start(f"{moved}@3")
    (first,) = attempts(open_folder(place))
    digest = checkpoint.weights_digest(open_folder(moved), 3, ema=True)
    assert first["initial"] == {"asked": f"{moved}@3", "uri": moved, "step": 3, "digest": digest}
    lines = [json.loads(line) for line in Path(place, "metrics.jsonl").read_text().splitlines()]
    with pytest.raises(
        UserError, match=rf"--init-from: got {moved}@6, but the run at .* began with {moved}@3; .*use ano"
    ):
        start(f"{moved}@6")
    shutil.rmtree(moved)
    start(None)
    assert said.count(f"resuming from step 3 of {place}") == 1
    start(f"{moved}@3")
    assert said[-1] == "already finished: step 6 of 6"
    assert "initial" not in attempts(open_folder(place))[-1]
    bare = str(tmp_path / "bare")
    pretrain(config, data, bare, device="cpu", say=said.append)
    other = json.loads(Path(bare, "metrics.jsonl").read_text().splitlines()[0])
    assert other["loss"] != lines[0]["loss"] and read_config(open_folder(bare)) == read_config(open_folder(place))
    with pytest.raises(UserError, match=r"--init-from: got .*, but the run at .* began with random weights"):
        pretrain(config, data, bare, device="cpu", init_from=f"{moved}@3", say=said.append)


def test_weights_that_changed_before_the_first_checkpoint_are_refused(source, run, tmp_path):
    moved = str(tmp_path / "source")
    shutil.copytree(f"{source}/checkpoints/000000003", moved)
    found = initial_weights(run, moved)
    claim(run, tiny_config(), initial=found)
    assert initial_weights(run, None) == found
    shutil.copy(f"{source}/checkpoints/000000006/model.safetensors", f"{moved}/model.safetensors")
    with pytest.raises(UserError, match=r"changed since the run began"):
        filling(run, found)
