"""`train.precision: auto`: what suits which device."""

from pathlib import Path

import pytest
import torch

from soda_dist.config.load import with_fields
from soda_dist.data.storage.folder import open_folder
from soda_dist.evaluation.model_sources import Checkpoint
from soda_dist.training import precision as module
from soda_dist.training.checkpoint import load_model
from soda_dist.training.precision import device_precision, has_bf16_units, speed_up, with_precision
from tests.evaluation.small_run import train
from tests.tiny import tiny_config


@pytest.mark.parametrize(("capability", "found"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_gpus_by_their_units(capability: tuple[int, int], found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert device_precision(torch.device("cuda")) == found


@pytest.mark.parametrize(("units", "faster", "found"), [(True, 2.0, "bf16"), (True, 1.1, "fp32"), (False, 9.0, "fp32")])
def test_cpus_by_their_units_and_a_measurement(
    units: bool, faster: float, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "has_bf16_units", lambda cpuinfo: units)
    monkeypatch.setattr(module, "speed_up", lambda: faster)
    assert device_precision(torch.device("cpu")) == found
    config = tiny_config(train={"precision": "auto"})
    assert with_precision(config, torch.device("cpu")).train.precision == found
    named = with_fields(config, {"train.precision": "bf16"})
    assert with_precision(named, torch.device("meta")) is named


def test_units_are_read_from_the_flags_alone(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    assert not has_bf16_units(cpuinfo)
    for text, found in (
        ("flags\t\t: fpu avx2 avx512f\n", False),
        ("model name: amx_bf16\nflags\t\t: fpu\n", False),
        ("flags\t\t: fpu avx512_bf16 sse\n", True),
        ("flags\t\t: fpu\nflags\t\t: amx_bf16\n", True),
    ):
        cpuinfo.write_text(text)
        assert has_bf16_units(cpuinfo) is found


def test_the_measurement_leaves_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    assert speed_up() > 0
    assert torch.equal(before, torch.get_rng_state())


def test_checkpoints_say_what_was_trained(tmp_path: Path) -> None:
    config = tiny_config(train={"steps": 1})
    run = train(str(tmp_path), config)
    assert load_model(run, 1, ema=True)[1].train.precision == "fp32"
    assert Checkpoint(open_folder(str(tmp_path)), 1, ema=True).load().precision == "fp32"
