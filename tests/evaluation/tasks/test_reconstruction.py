"""The task reconstruction: which ways of sampling it goes through, and what it says of each."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from soda_dist.config.load import with_fields
from soda_dist.data.storage.folder import open_folder
from soda_dist.errors import UserError
from soda_dist.evaluation.context import Subject
from soda_dist.evaluation.images.generated_sets import ImageSet, folder_of, image_set, load_set
from soda_dist.evaluation.images.scores import images_of
from soda_dist.evaluation.tasks import reconstruction as task
from soda_dist.evaluation.worker import Models, readers
from soda_dist.training.build import build_model
from tests.evaluation.features.test_extraction import LocalCrew
from tests.evaluation.images.colours import FACTS, slow_fid, stand_in
from tests.evaluation.images.test_generated_sets import subject_of
from tests.evaluation.small_run import small_data
from tests.models.methods import config_of

FIELDS = {
    "evaluation.images": 2, "evaluation.reconstruction.images": 30,
    "evaluation.reconstruction.guidance": [0.5, 2.0, 2.0], "evaluation.reconstruction.steps": [2, 3, 2],
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("reconstruct")
    small_data(path)
    return path


def _subject(name: str, data: Path, run: Path, **fields: object) -> Subject:
    """A run with fresh weights that hear z, sampled at guidance 2 in 3 steps."""
    config = with_fields(config_of(name, sampling={"steps": 3}), {**FIELDS, **fields})
    model = build_model(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    models = Models(model, config, readers(str(data), config), torch.device("cpu"))
    return subject_of(models, open_folder(str(run)), config, LocalCrew(models), [])


def test_each_way_is_scored_once_and_the_runs_own_comes_first(data: Path, tmp_path: Path) -> None:
    subject = _subject("soda", data, tmp_path)
    result = task.reconstruct(subject)
    assert [(row["guidance"], row["steps"]) for row in result["sweep"]] == [(2.0, 3), (0.5, 3), (2.0, 2)]
    assert list(result["guidance"]) == ["2", "0.5"], "at the run's number of steps"
    assert result["guidance"]["0.5"] == result["sweep"][1] and result["value"] == result["sweep"][0]["psnr"]["value"]
    assert len({row["psnr"]["value"] for row in result["sweep"]}) == 3
    assert all(row["counts"] == {"images": 29, "unreadable": 1} for row in [*result["sweep"], result])
    assert result["inception"] is None and result["lpips"] is None
    assert "fid" not in result["sweep"][0] and "lpips" not in result["sweep"][0]
    assert subject.place.exists("sweep.png") and subject.place.read_json("reconstruction.json") == result


def test_each_way_has_its_fid_where_inceptions_weights_are_named(data: Path, tmp_path: Path, monkeypatch) -> None:
    stand_in(monkeypatch)
    subject = _subject("soda", data, tmp_path, **{"evaluation.inception.weights": "/nowhere/a.pth"})
    result = task.reconstruct(subject)
    for row in result["sweep"]:
        how = subject.config.sampling.model_copy(update={"guidance": row["guidance"], "steps": row["steps"]})
        pieces = image_set(subject, ImageSet("reconstruction", "test", how), 30)
        table = load_set(folder_of(subject, pieces[0].of), pieces, ["image", "target"])
        expected = slow_fid(*(images_of(table.column(side)) for side in ("image", "target")))
        assert row["fid"] == {"value": pytest.approx(expected, rel=1e-6), "standard_error": None}
    assert len({row["fid"]["value"] for row in result["sweep"]}) == 3 and result["inception"] == FACTS
    with pytest.raises(UserError, match=r"evaluation\.inception\.weights: got /nowhere/a.pth"):
        task.check(subject)


def test_a_decoder_draws_at_once_and_has_one_way(data: Path, tmp_path: Path) -> None:
    subject = _subject("encdec", data, tmp_path)
    result = task.reconstruct(subject)
    assert list(result["guidance"]) == ["1"] and len(result["sweep"]) == 1
    assert not subject.place.exists("sweep.png") and subject.place.exists("reconstruction.png")


def test_what_has_no_source_is_not_reconstructed(data: Path, tmp_path: Path) -> None:
    subject = _subject("unconditional", data, tmp_path)
    with pytest.raises(UserError, match=r"reconstruction of an unconditional run; allowed: samples, fid"):
        task.check(subject)
    for name in ("palette", "encdec"):
        other = replace(subject, config=config_of(name))
        with pytest.raises(UserError, match=f"samples of method {name}"):
            task.check_samples(other)
        task.check(other)
    task.check_samples(subject)
