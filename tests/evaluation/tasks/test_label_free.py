"""Label-free measures of a run and of an encoder, on data with and without labels; a collapsed encoder is told."""

from pathlib import Path

import pytest
import torch

from soda_dist.data.shards import read_manifest, write_manifest
from soda_dist.data.storage.folder import open_folder
from soda_dist.errors import UserError
from soda_dist.evaluation import evaluate
from soda_dist.evaluation.model_sources import EncoderFile
from soda_dist.evaluation.task_runner import evaluate_encoder
from soda_dist.models.encoder import Encoder
from tests.evaluation.scattered_pool import ScatteredPool
from tests.evaluation.small_run import small_data

FEW = ["evaluation.label_free.images=20"]


@pytest.fixture(scope="module")
def unlabelled(place: Path) -> Path:
    """The small data set, whose manifest names no label."""
    small_data(place / "unlabelled")
    folder = open_folder(str(place / "unlabelled"))
    write_manifest(folder, read_manifest(folder).model_copy(update={"labels": {}, "main_label": None}))
    return place / "unlabelled"


def test_a_run_is_judged_on_data_without_labels_by_any_pool(place: Path, unlabelled: Path) -> None:
    results = [
        evaluate(str(place / "run"), str(unlabelled), "label_free", pool, overrides=FEW)["label_free"]
        for pool in (None, ScatteredPool(1))
    ]
    found = results[0]
    assert found["encoders"] == results[1]["encoders"] and list(found["encoders"]) == ["trained", "untrained", "pixels"]
    assert found["counts"] == {"images": 19, "unreadable": 1} and found["splits"] == {"test": "test"}
    for scores in found["encoders"].values():
        assert 1 / 19 <= scores["retrieval"] <= 1 < scores["effective_rank"] < scores["dimension"]
    assert found["value"] == found["encoders"]["trained"]["retrieval"]
    with pytest.raises(UserError, match="--tasks: got knn of data without labels"):
        evaluate(str(place / "run"), str(unlabelled), "knn")


def test_without_named_tasks_it_does_what_needs_no_labels_and_says_so(place: Path, unlabelled: Path) -> None:
    said: list[str] = []
    few = [*FEW, "evaluation.images=1", "sampling.steps=1"]
    found = evaluate(str(place / "run"), str(unlabelled), overrides=few, say=said.append)
    assert list(found) == ["label_free", "samples"]
    assert said[0] == "data without labels: doing label_free, samples; left out probe, knn"


def test_an_encoder_alone_is_judged_as_its_run(place: Path, unlabelled: Path, tmp_path: Path) -> None:
    file = EncoderFile(str(place / "run/checkpoints/000000006/encoder.safetensors"))
    alone = evaluate_encoder(file, str(unlabelled), "label_free", str(tmp_path), overrides=FEW)["label_free"]
    whole = evaluate(str(place / "run"), str(unlabelled), "label_free", overrides=FEW)["label_free"]
    assert alone["encoders"] == whole["encoders"] and alone["warning"] == whole["warning"]


def test_collapsed_latents_are_told(place: Path, unlabelled: Path, tmp_path: Path, monkeypatch) -> None:
    said: list[str] = []
    file = EncoderFile(str(place / "run/checkpoints/000000006/encoder.safetensors"))
    monkeypatch.setattr(Encoder, "forward", lambda self, images, *poses: torch.ones(len(images), 12))
    found = evaluate_encoder(file, str(unlabelled), "label_free", str(tmp_path), overrides=FEW, say=said.append)
    assert "effective rank 0.00 of 12" in found["label_free"]["warning"]
    assert any(line.startswith("warning: the latents have collapsed") for line in said)
