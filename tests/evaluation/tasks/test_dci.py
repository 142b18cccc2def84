"""The task dci: what is written, against the metric's own functions; and what it refuses."""

from pathlib import Path

import numpy as np
import pytest

from soda_dist.config.load import with_fields
from soda_dist.data.shards import read_manifest
from soda_dist.data.storage.folder import open_folder
from soda_dist.errors import UserError
from soda_dist.evaluation.task_runner import evaluate
from soda_dist.evaluation.tasks.dci import factor_columns
from soda_dist.metrics import dci
from soda_dist.report.paper import Column
from soda_dist.report.paper_columns import Figure, figure
from soda_dist.runs.results import read_run
from tests.tiny import tiny_config


def test_dci_of_latents_is_the_metrics_own(place: Path) -> None:
    said: list[str] = []
    run = place / "run"
    found = evaluate(str(run), str(place / "data"), "dci", say=said.append)["dci"]
    folder = open_folder(str(run))
    for name in ("disentanglement", "completeness", "informativeness"):
        assert figure(read_run(folder.uri), Column(metric="", ours=f"dci.{name}")) == Figure(100 * found[name], None)
    assert folder.read_json("eval/6/dci.json") == found
    assert (found["factors"], found["counts"]) == (["colour", "bright"], {"train": 44, "test": 29})
    importance = np.load(run / "eval/6/importance.npy", allow_pickle=False)
    assert importance.shape == (12, 2)
    accuracy = np.array([factor["accuracy"] for factor in found["by_factor"].values()])
    expected = dci.scores(importance, accuracy, accuracy)
    assert found["disentanglement"] == found["value"] == pytest.approx(expected.disentanglement)
    assert found["completeness"] == pytest.approx(expected.completeness)
    assert found["informativeness"] == pytest.approx(accuracy.mean())
    assert set(found["others"]) == {"mig", "sap", "factor_vae", "modularity"}
    share = np.array(found["sections"]["share"])
    assert share.shape == (3, 2)
    np.testing.assert_allclose(share.sum(0), 1)
    assert all(folder.read(f"eval/6/{name}.png").startswith(b"\x89PNG") for name in ("importance", "sections"))
    assert any(line.startswith("DCI over 2 factors, 44 training images: disentanglement") for line in said)


def test_a_limit_takes_as_many_codes_as_factor_values(place: Path) -> None:
    limits = ["evaluation.dci.max_train_images=30", "evaluation.dci.max_test_images=20"]
    found = evaluate(str(place / "run"), str(place / "data"), "dci", overrides=limits)["dci"]
    assert found["counts"] == {"train": 30, "test": 20}


def test_factors_are_those_that_are_named_or_the_data_sets_own(place: Path) -> None:
    manifest, config = read_manifest(open_folder(str(place / "data"))), tiny_config()
    assert factor_columns(manifest, config) == ("bright", "late"), "attributes, where there are no factors"
    with pytest.raises(UserError, match=r"evaluation\.dci\.factors: got shape; allowed: colour, bright, late"):
        factor_columns(manifest, with_fields(config, {"evaluation.dci.factors": ["shape"]}))
    bare = manifest.model_copy(update={"labels": {"colour": manifest.labels["colour"]}})
    with pytest.raises(UserError, match=r"--tasks: got dci of data without factors or attributes"):
        factor_columns(bare, config)


def test_dci_without_an_encoder_is_refused(place: Path) -> None:
    with pytest.raises(UserError, match=r"dci of a denoiser's activations"):
        evaluate(str(place / "run"), str(place / "data"), "dci", overrides=["evaluation.latents=denoiser"])
