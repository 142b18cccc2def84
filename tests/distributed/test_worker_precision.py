"""`train.precision: auto` is resolved once for a run, by the devices of all its workers."""

from pathlib import Path
from typing import Any

import pytest

from soda_dist.data.storage.folder import open_folder
from soda_dist.distributed import train_worker
from soda_dist.runs.folder import claim, read_config
from soda_dist.training.context import LocalContext
from tests.tiny import tiny_config

AUTO = tiny_config(train={"precision": "auto"})


class Peers(LocalContext):
    """A worker whose peers have devices of other precisions."""

    def __init__(self, *others: str) -> None:
        super().__init__()
        self.others = others

    def gather(self, value: Any) -> list[Any]:
        return [value, *(("auto", other) for other in self.others)]


def resolved(place: Path, own: str, *others: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(train_worker, "device_precision", lambda device: own)
    run = open_folder(str(place))
    config = claim(run, AUTO)
    if config.train.precision != "auto":
        return f"kept {config.train.precision}"
    found = train_worker._with_precision(config, run, Peers(*others)).train.precision
    assert read_config(run).train.precision == found
    return found


def test_all_devices_must_have_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolved(tmp_path / "all", "bf16", "bf16", monkeypatch=monkeypatch) == "bf16"
    assert resolved(tmp_path / "one lacks them", "bf16", "fp32", monkeypatch=monkeypatch) == "fp32"


def test_a_later_start_on_other_devices_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolved(tmp_path, "bf16", monkeypatch=monkeypatch) == "bf16"
    assert resolved(tmp_path, "fp32", monkeypatch=monkeypatch) == "kept bf16"


def test_workers_that_start_again_keep_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray restarts lost workers with the configuration of the driver, in which it is still `auto`."""
    assert resolved(tmp_path, "bf16", monkeypatch=monkeypatch) == "bf16"
    monkeypatch.setattr(train_worker, "device_precision", lambda device: "fp32")
    again = train_worker._with_precision(AUTO, open_folder(str(tmp_path)), Peers())
    assert again.train.precision == "bf16"
