"""`soda_dist.pretrain`: the plain run, however the configuration is written, resumed after an interruption."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import soda_dist
from soda_dist.config import RunConfig, dump_config
from soda_dist.config.load import with_fields
from soda_dist.data.storage.folder import open_folder
from soda_dist.errors import UserError
from soda_dist.runs import lease
from soda_dist.runs.folder import attempts, complete_steps
from soda_dist.training.checkpoint_writer import CheckpointWriter
from soda_dist.training.local_run import alone, configuration, pretrain
from tests.evaluation.small_run import small_data
from tests.tiny import TINY, tiny_config
from tests.training.plain_run import train_plainly


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data")
    small_data(path)
    return str(path)


def weights(run: str, step: int) -> dict[str, torch.Tensor]:
    return load_file(f"{run}/checkpoints/{step:09d}/model.safetensors")


def test_it_is_the_plain_run_and_an_interrupted_one_resumes_to_it(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, said, save = tiny_config(), list[str](), CheckpointWriter.save
    plain = train_plainly(data, config, str(tmp_path / "plain"))

    def save_and_stop(*args: Any) -> float:
        save(*args)
        raise KeyboardInterrupt

    place, threads = str(tmp_path / "run"), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(CheckpointWriter, "save", save_and_stop)
            pretrain(config, data, place, device="cpu", say=said.append)
        assert pretrain(config, data, place, device="cpu", say=said.append) == place
    finally:
        torch.set_num_threads(threads)
    assert said[0] == "45 rows of test; 6 steps of 8 pairs"
    assert f"resuming from step 3 of {place}" in said
    found, expected = weights(place, 6), weights(plain.uri, 6)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    run = open_folder(place)
    assert complete_steps(run) == [3, 6] and len(attempts(run)) == 2
    assert attempts(run)[-1]["data"]["rows"] == 45
    pretrain(config, data, place, device="cpu", say=said.append)
    assert said[-1] == "already finished: step 6 of 6"
    with pytest.raises(UserError, match=r"optim.eps: got 0.5, but the run at .* has 1e-08"):
        pretrain(config, data, place, {"optim.eps": 0.5}, device="cpu", say=said.append)
    pretrain(config, data, place, {"optim.lr": 0.5}, device="cpu", say=said.append)
    assert said[-2:] == ["optim.lr: 0.5 from step 6 on, 0.001 before", "already finished: step 6 of 6"]


def test_a_configuration_is_written_in_several_ways(tmp_path: Path) -> None:
    config = tiny_config()
    file = tmp_path / "tiny.yaml"
    file.write_text(dump_config(config))
    for given in (config, file, str(file), f"file://{file}", TINY):
        assert configuration(given, {}) == config
    for overrides in ({"train.steps": 9, "seed": 2}, {"train": {"steps": 9}, "seed": 2}):
        assert configuration(file, overrides) == with_fields(config, {"train.steps": 9, "seed": 2})
    assert configuration("demo", {}).data.target_size == 16
    for wrong, message in (("nope", "--preset: got nope"), (str(tmp_path / "no.yaml"), "an existing YAML file")):
        with pytest.raises(UserError, match=message):
            configuration(wrong, {})
    with pytest.raises(UserError, match="steps"):
        configuration(config, {"train.stps": 1})


@pytest.mark.parametrize(
    ("fields", "micro"),
    [
        ({"train.global_batch": 32}, None),
        ({"train.global_batch": 32, "scale.workers": 4}, 8),
        ({"train.global_batch": 32, "scale.workers": 4, "train.micro_batch": 4}, 4),
        ({"train.global_batch": 32, "scale.workers": 4, "encoder.norm": "batch", "train.norm_batch": 16}, 16),
        ({"train.global_batch": 32, "scale.workers": 4, "encoder.norm": "batch"}, 32),
    ],
)
def test_a_run_of_several_workers_is_trained_by_one(fields: dict, micro: int | None) -> None:
    """In a worker's micro-batches, unless batch norm wants more together."""
    config = with_fields(with_fields(RunConfig(), {}), {**_flat(), **fields})
    found = alone(with_fields(config, {"scale.engine": "deepspeed"}))
    assert (found.scale.workers, found.scale.engine, found.train.micro_batch) == (1, "torch", micro)
    assert found.norm_batch == config.norm_batch


def _flat() -> dict:
    from soda_dist.config.load import leaves

    return leaves({name: section for name, section in TINY.items() if name != "scale"})


def test_a_run_that_another_trains_is_left_alone(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LOOK_S", 0.001)
    monkeypatch.setattr(lease, "SETTLE_S", 0.0)
    said: list[str] = []

    def second(line: str) -> None:
        if line.startswith("45 rows"):
            with pytest.raises(UserError, match=r"--run: got .*, held by .* \(soda_dist\.pretrain, process \d+, "):
                pretrain(tiny_config(), data, str(tmp_path / "run"), {"optim.lr": 0.5}, device="cpu", say=said.append)

    monkeypatch.setattr(lease, "BEAT_S", 0.002)
    pretrain(tiny_config(), data, str(tmp_path / "run"), {"train.steps": 1}, device="cpu", say=second)
    run = open_folder(str(tmp_path / "run"))
    assert ["watching for a heartbeat" in line for line in said] == [True]
    assert len(attempts(run)) == 1 and complete_steps(run) == [1] and not run.exists("lease.json")


def test_a_trainer_that_was_replaced_writes_nothing_more(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "SETTLE_S", 0.0)
    run = open_folder(str(tmp_path / "run"))

    def replaced(line: str) -> None:
        if line == "reading the first rows":
            run.write_json("lease.json", run.read_json("lease.json") | {"token": "theirs"})

    with pytest.raises(lease.LeaseLostError, match="has taken over"):
        pretrain(tiny_config(), data, run.uri, {"train.steps": 1}, device="cpu", say=replaced)
    assert not run.list("checkpoints/") and not run.exists("metrics.jsonl")
    assert run.read_json("lease.json")["token"] == "theirs"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data.train_split": "val"}, "data.train_split: got val; allowed: train, test"),
        ({"data.views": "object"}, "column object is missing"),
        ({"train.online_probe": True, "train.online_probe_label": "shape"}, "online_probe_label: got shape"),
    ],
)
def test_data_that_do_not_fit_are_refused_before_anything_is_written(data, tmp_path, fields, message) -> None:
    with pytest.raises(UserError, match=message):
        pretrain(tiny_config(), data, str(tmp_path / "run"), fields, device="cpu")
    assert not (tmp_path / "run").exists()


def test_the_package_lends_it() -> None:
    assert soda_dist.pretrain is pretrain
