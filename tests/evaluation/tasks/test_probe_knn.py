"""The task `probe` by several workers and on augmented passes: what one worker finds."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from soda_dist.data.shards import read_manifest
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.errors import UserError
from soda_dist.evaluation.features.extraction import read_features
from soda_dist.evaluation.pieces import Features, plan_pieces
from soda_dist.evaluation.task_runner import evaluate
from soda_dist.metrics.classification import Labelled
from soda_dist.metrics.probe import evaluate as evaluate_probe
from tests.evaluation.local import ThreadGang, on_threads

FIT = {"epochs": 20, "batch": 16, "learning_rates": (1e-2, 3e-2), "dropout": 0.1, "label_smoothing": 0.0}


@pytest.fixture(autouse=True)
def _on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    on_threads(monkeypatch)


def probe(place: Path, *overrides: str, said: list[str] | None = None) -> dict:
    say = (lambda line: None) if said is None else said.append
    fields = [f"evaluation.{override}" for override in ("probe.epochs=20", *overrides)]
    found = evaluate(str(place / "run"), str(place / "data"), "probe", ThreadGang(), overrides=fields, say=say)["probe"]
    assert open_folder(str(place / "run")).read_json("eval/6/probe.json") == found
    return found


def scores(result: dict) -> dict:
    return {name: (found["estimates"], found["details"]) for name, found in result["encoders"].items()}


def test_workers_find_what_one_finds_and_the_result_tells_their_number(place: Path) -> None:
    one, said = probe(place), list[str]()
    many = probe(place, "probe.workers=3", said=said)
    assert set(scores(one)) == {"trained", "untrained", "pixels"} and scores(many) == scores(one)
    assert one["encoders"]["pixels"]["estimates"]["top1"]["value"] > 0.9
    assert (one["settings"]["workers"], many["settings"]["workers"]) == (1, 3)
    same = ("counts", "unreadable", "majority", "metric", "value", "label", "splits")
    assert {name: many[name] for name in same} == {name: one[name] for name in same}
    assert "probe of 44 images: 3 of 3 fits" in said


def test_attributes_and_more_workers_than_pieces(place: Path) -> None:
    """One piece of 20 rows: two of the three workers have none."""
    overrides = ("label=attributes", "max_train_images=20", "batch=20")
    one, many = probe(place, *overrides), probe(place, *overrides, "probe.workers=3")
    assert many["metric"] == "macro_f1" and many["counts"]["train"] == 20 and scores(many) == scores(one)


def test_passes_are_fitted_in_turn_and_the_learning_rate_is_chosen_on_plain_rows(place: Path) -> None:
    found = {workers: probe(place, "probe.passes=2", f"probe.workers={workers}") for workers in (1, 2)}
    assert scores(found[1]) == scores(found[2])
    assert found[1]["settings"]["passes"] == 2 and found[1]["counts"]["train"] == 44
    lying = {path.name: path.parent for path in (place / "run").glob("latents/*/train/pass-000*")}
    names = sorted(name for name in lying if name.startswith("pass-0000"))
    folder = open_folder(str(lying[names[0]]))
    train_rows, test_rows = (_plain(place, split) for split in ("train", "test"))
    for encoder, (estimates, details) in scores(found[1]).items():
        draws = np.stack([_vectors(folder, number, encoder) for number in (0, 1)])
        alone = evaluate_probe(
            Labelled(torch.from_numpy(draws), torch.from_numpy(train_rows.labels(["colour"])[:, 0])),
            Labelled(torch.from_numpy(test_rows.arrays[encoder]), torch.from_numpy(test_rows.labels(["colour"])[:, 0])),
            classes=3, seed=0, weight_std=0.02, bias=0.0, plain=torch.from_numpy(train_rows.arrays[encoder]), **FIT,
        )  # fmt: skip
        assert estimates == {name: vars(each) for name, each in alone.estimates.items()}
        assert details == alone.details, "the learning rates' values too"
    assert scores(found[1])["trained"] != scores(probe(place))["trained"], "augmented rows are other rows"


def _vectors(folder: Folder, number: int, encoder: str) -> np.ndarray:
    names = sorted(entry.name for entry in folder.list() if entry.name.startswith(f"pass-{number:04d}"))
    table = [pq.read_table(folder.open(name)) for name in names]
    rows = [np.stack(each.column(f"vector/{encoder}").to_pylist())[each.column("ok").to_numpy()] for each in table]
    return np.concatenate(rows).astype(np.uint8 if encoder == "pixels" else np.float32)


def _plain(place: Path, split: str) -> Features:
    pieces = plan_pieces(split, read_manifest(open_folder(str(place / "data"))).split(split).groups, None, 8)
    (folder,) = {
        path.parent for path in (place / "run").glob(f"latents/*/{split}/{pieces[-1].file}")
        if all((path.parent / piece.file).exists() for piece in pieces)
    }  # fmt: skip
    return read_features(open_folder(str(folder)), pieces)


@pytest.mark.parametrize("wrong", ["probe.workers=0", "probe.passes=-1", "probe.crop_flip_rate=1.5", "probe.passes=21"])
def test_wrong_numbers_are_refused(place: Path, wrong: str) -> None:
    with pytest.raises(UserError, match=wrong.partition("=")[0]) as caught:
        probe(place, wrong)
    assert "\n" not in str(caught.value)
