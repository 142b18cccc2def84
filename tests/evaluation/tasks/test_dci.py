"""The task dci: what is written, against the metric's own functions; and what it refuses."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from soda_dist.config.load import with_fields
from soda_dist.data.shards import read_manifest
from soda_dist.data.storage.folder import open_folder
from soda_dist.errors import UserError
from soda_dist.evaluation.task_runner import evaluate
from soda_dist.evaluation.tasks import dci as task
from soda_dist.evaluation.tasks.dci import factor_columns
from soda_dist.metrics import dci
from soda_dist.report.paper import Column
from soda_dist.report.paper_columns import Figure, figure
from soda_dist.runs.results import read_run
from tests.evaluation.contexts import context_of, without_model
from tests.evaluation.small_run import prepare
from tests.tiny import tiny_config

ALL = {"train": 44, "test": 29, "unreadable_train": 1, "unreadable_test": 1}


def test_dci_of_latents_is_the_metrics_own(place: Path) -> None:
    said: list[str] = []
    run = place / "run"
    found = evaluate(str(run), str(place / "data"), "dci", say=said.append)["dci"]
    folder = open_folder(str(run))
    for name in ("disentanglement", "completeness", "informativeness"):
        assert figure(read_run(folder.uri), Column(metric="", ours=f"dci.{name}")) == Figure(100 * found[name], None)
    assert folder.read_json("eval/6/dci.json") == found
    assert (found["factors"], found["counts"]) == (["colour", "bright"], ALL)
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


def test_a_limit_takes_every_class_of_a_sorted_split_in_proportion(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A third of the rows: the first ones are all of one class. A draw of 60 leaves 20 of each, give or take 3.

    Only these are read, and the latents of a row are those of its image.
    """
    prepare(str(tmp_path), {"train": [[20] * 9], "test": [[20] * 6]}, {}, by_colour=True)
    fitted: list[tuple] = []
    fit = task.fit_factors
    monkeypatch.setattr(
        task, "fit_factors", lambda pool, *sets, **more: fitted.append(sets) or fit(pool, *sets, **more)
    )
    limits = ["evaluation.dci.max_train_images=60", "evaluation.dci.max_test_images=40"]
    found = evaluate(str(place / "run"), str(tmp_path), "dci", overrides=limits)["dci"]
    assert found["factors"] == ["colour", "bright"] and found["limits"] == {"train": 60, "test": 40}
    ((train, test),) = fitted
    assert np.abs(np.bincount(train[1][:, 0]) - 20).max() < 10 and np.bincount(train[1][:, 1]).min() > 15
    assert len(np.bincount(test[1][:, 0])) == 3 and np.bincount(test[1][:, 0]).min() > 5


def test_a_denoisers_best_layer_stands_for_an_encoder(place: Path) -> None:
    said: list[str] = []
    overrides = [
        "evaluation.latents=denoiser", "evaluation.activations.layers=[down.0,up.0]",
        "evaluation.activations.noise_levels=[0.02]", "evaluation.activations.search_images=40",
    ]  # fmt: skip
    found = evaluate(str(place / "run"), str(place / "data"), "dci", overrides=overrides, say=said.append)["dci"]
    assert set(found["search"]) == {"down.0 at t = 2", "up.0 at t = 2"}
    assert found["search"][found["read_at"]] == max(found["search"].values())
    width = 8 if "down.0" in found["read_at"] else 16
    assert np.load(place / "run/eval/6/importance.npy", allow_pickle=False).shape == (width, 2)
    assert "sections" not in found, "activations have no sections"


def test_factors_are_those_that_are_named_or_the_data_sets_own(place: Path) -> None:
    manifest, config = read_manifest(open_folder(str(place / "data"))), tiny_config()
    assert factor_columns(manifest, config) == ("bright", "late"), "attributes, where there are no factors"
    with pytest.raises(UserError, match=r"evaluation\.dci\.factors: got shape; allowed: colour, bright, late"):
        factor_columns(manifest, with_fields(config, {"evaluation.dci.factors": ["shape"]}))
    bare = manifest.model_copy(update={"labels": {"colour": manifest.labels["colour"]}})
    with pytest.raises(UserError, match=r"--tasks: got dci of data without factors or attributes"):
        factor_columns(bare, config)


def test_a_denoisers_layer_is_chosen_by_the_label_or_the_first_factor(place: Path, tmp_path: Path) -> None:
    context = context_of(without_model(tiny_config(evaluation={"latents": "denoiser"}), place / "data"), tmp_path)
    assert task._searched(context, ("bright",)).name == "colour", "the main label"
    bare = replace(context, manifest=context.manifest.model_copy(update={"main_label": None}))
    assert task._searched(bare, ("bright", "late")).name == "bright"
    with pytest.raises(UserError, match=r"evaluation\.label: got shape"):
        task.check(replace(context, config=with_fields(context.config, {"evaluation.label": "shape"})))
