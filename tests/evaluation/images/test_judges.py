"""LPIPS, FID and their kin by actors: against the libraries' own use, whatever is lost on the way."""

import hashlib
import os
import signal
from dataclasses import replace
from pathlib import Path

import lpips
import numpy as np
import psutil
import pytest
import torch
from soda_dist.evaluation.evaluate import evaluate
from torch.utils.data import Dataset
from torch_fidelity import calculate_metrics

from soda_dist.config.load import with_fields
from soda_dist.data.storage.folder import open_folder
from soda_dist.distributed.runtime import farm
from soda_dist.errors import UserError
from soda_dist.evaluation.images import generated_sets
from soda_dist.evaluation.images.generated_sets import ImageSet, generate_set, image_set, load_set
from soda_dist.evaluation.images.judges import check_weights, judge_of, lpips_scores, set_moments
from soda_dist.evaluation.images.scores import images_of
from soda_dist.evaluation.model_sources import Checkpoint
from soda_dist.evaluation.worker import Models, load_models
from soda_dist.metrics.distributions import fid
from soda_dist.metrics.perceptual import load_lpips
from tests.evaluation.features.test_extraction import LocalCrew
from tests.evaluation.images.test_generated_sets import subject_of
from tests.evaluation.small_run import small_data, train
from tests.metrics.networks import write_alexnet, write_inception
from tests.tiny import tiny_config

LARGER = {
    "train": {"steps": 3},
    "data": {"source_size": 32, "target_size": 32},
    "denoiser": {"attention_resolutions": (16,)},
}
"""As large as LPIPS needs images."""


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """data/, run/ trained for three steps on 32 px, inception.pth and alexnet.pth."""
    path = tmp_path_factory.mktemp("perception")
    small_data(path / "data")
    evaluation = {"batch": 5, "images": 2, "fid": {"images": 12}}
    train(str(path / "run"), tiny_config(**LARGER, evaluation=evaluation))
    write_inception(path / "inception.pth")
    write_alexnet(path / "alexnet.pth")
    return path


def weights(place: Path, name: str, file: str) -> dict[str, str]:
    """The configuration's fields that allow a test file."""
    path = place / file
    return {f"evaluation.{name}.weights": str(path), f"evaluation.{name}.weights_sha256": digest(path)}


@pytest.fixture(scope="module")
def models(place: Path) -> Models:
    config = tiny_config(**LARGER, evaluation={"batch": 5, "images": 2})
    config = with_fields(config, weights(place, "inception", "inception.pth"))
    config = with_fields(config, weights(place, "lpips", "alexnet.pth"))
    return load_models(Checkpoint(open_folder(str(place / "run")), 3, True), str(place / "data"), config, "cpu")


def _set(models: Models, tmp_path: Path, crew: LocalCrew):
    """Twelve reconstructions in three pieces."""
    subject = subject_of(models, open_folder(str(tmp_path)), models.config, crew, [])
    of = ImageSet("reconstruction", "test", models.config.sampling)
    pieces = image_set(subject, of, 12)
    return subject, generate_set(subject, pieces, "drawn"), pieces


@pytest.fixture
def small_pieces(monkeypatch) -> None:
    monkeypatch.setattr(generated_sets, "PIECE", 4)


class Images(Dataset):
    """uint8 [n, h, w, 3] as torch-fidelity wants them."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index]


def by_torch_fidelity(drawn: np.ndarray, real: np.ndarray, file: Path) -> float:
    return calculate_metrics(
        input1=Images(drawn), input2=Images(real), cuda=False, fid=True, verbose=False, batch_size=5,
        feature_extractor="inception-v3-compat", feature_extractor_weights_path=str(file), save_cpu_ram=True,
    )["frechet_inception_distance"]  # fmt: skip


def test_lpips_is_the_packages(models: Models, tmp_path: Path, place: Path, small_pieces) -> None:
    subject, folder, pieces = _set(models, tmp_path, LocalCrew(models, seed=3))
    table = load_set(folder, pieces, ["image", "target"])
    pair = [torch.from_numpy(images_of(table.column(s))).permute(0, 3, 1, 2).float() for s in ("image", "target")]
    package = lpips.LPIPS(net="alex", pnet_rand=True, pretrained=False, verbose=False)
    own = load_lpips((place / "alexnet.pth").read_bytes(), digest(place / "alexnet.pth"), net="alex")
    package.load_state_dict(own.state_dict())
    expected = package(pair[0] / 127.5 - 1, pair[1] / 127.5 - 1).flatten().detach().double().numpy()
    np.testing.assert_allclose(lpips_scores(subject, folder, pieces), expected, rtol=1e-4, atol=1e-6)


class Forgetful(LocalCrew):
    """Its actor is lost once before it hands over what it has summed up."""

    lost = False

    def each(self, job, argument):
        if not self.lost:
            self.lost = True
            self._models.kept.clear()
            return []
        return super().each(job, argument)


class TwoActors(LocalCrew):
    """Work goes to two actors by turns; the second one is lost once before it hands over."""

    lost = False

    def __init__(self, models: Models) -> None:
        super().__init__(models)
        self._actors = [replace(models, kept={}), replace(models, kept={})]

    def share_out(self, job, pieces, tick):
        for number, piece in enumerate(pieces):
            yield number, job(self._actors[number % 2], piece)

    def each(self, job, argument):
        if not self.lost:
            self.lost = True
            self._actors[1].kept.clear()
            return [job(self._actors[0], argument)]
        return [job(actor, argument) for actor in self._actors]


def test_what_one_of_two_actors_had_summed_up_is_looked_at_again(models: Models, tmp_path, small_pieces) -> None:
    subject, folder, pieces = _set(models, tmp_path, TwoActors(models))
    found, _ = set_moments(subject, folder, pieces, "target", 0)
    subject._crew = LocalCrew(models)
    whole, _ = set_moments(subject, folder, pieces, "target", 0)
    assert found.count == whole.count == len(load_ok(folder, pieces))
    np.testing.assert_allclose(found.mean, whole.mean, rtol=1e-9)
    np.testing.assert_allclose(found.scatter, whole.scatter, rtol=1e-6, atol=1e-9)


def test_fid_is_torch_fidelitys_and_survives_a_lost_sum(models: Models, place: Path, tmp_path, small_pieces) -> None:
    crew = Forgetful(models, seed=1)
    subject, folder, pieces = _set(models, tmp_path, crew)
    drawn, features = set_moments(subject, folder, pieces, "image", 8)
    real, _ = set_moments(subject, folder, pieces, "target", 0)
    table = load_set(folder, pieces, ["image", "target"])
    images = [images_of(table.column(side)) for side in ("image", "target")]
    assert crew.lost and drawn.count == real.count == len(table)
    expected = by_torch_fidelity(*images, place / "inception.pth")
    assert fid(drawn, real) == pytest.approx(expected, rel=1e-4)
    assert features.shape[1] == 2048 and len(features) == sum(load_ok(folder, pieces[:2]))


def load_ok(folder, pieces) -> list[bool]:
    return load_set(folder, pieces, []).column("ok").to_pylist()


def test_weights_that_are_not_the_published_ones_need_their_digest(models: Models, place: Path) -> None:
    assert judge_of(models, "inception").facts == {"sha256": digest(place / "inception.pth"), "published": False}
    fields = {"evaluation.inception.weights": str(place / "inception.pth"), "evaluation.inception.weights_sha256": None}
    other = Models(models.model, with_fields(models.config, fields), models.reader, models.device)
    with pytest.raises(UserError, match=r"got a file of digest .*allowed: the published weights; download https://"):
        judge_of(other, "inception")
    wrong = with_fields(models.config, {"evaluation.inception.weights_sha256": "0" * 64})
    with pytest.raises(UserError, match=r"inception\.weights_sha256"):
        judge_of(Models(models.model, wrong, models.reader, models.device), "inception")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"evaluation.lpips.weights": None}, r"got nothing; allowed: a file or URI; download https://download.pytorch"),
        ({"evaluation.lpips.weights": "/nowhere/a.pth"}, r"got /nowhere/a.pth; allowed: an existing file; download"),
    ],
)
def test_missing_weights_say_what_to_fetch_and_where_to_put_it(models: Models, fields: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_weights(with_fields(models.config, fields), "lpips")


def test_images_too_small_for_lpips_are_told_in_one_line(place: Path, tmp_path: Path) -> None:
    config = with_fields(tiny_config(train={"steps": 3}), weights(place, "lpips", "alexnet.pth"))
    train(str(tmp_path / "run"), config)
    models = load_models(Checkpoint(open_folder(str(tmp_path / "run")), 3, True), str(place / "data"), config, "cpu")
    subject, folder, pieces = _set(models, tmp_path, LocalCrew(models))
    with pytest.raises(UserError, match=r"evaluation.lpips: .*at least 31 pixels a side"):
        lpips_scores(subject, folder, pieces)


def _kill_an_actor() -> None:
    workers = [p for p in psutil.Process().children(recursive=True) if "ray::_Worker" in " ".join(p.cmdline())]
    os.kill(workers[0].pid, signal.SIGKILL)


@pytest.mark.ray
def test_fid_does_not_depend_on_actors_nor_on_one_that_is_killed(cluster: None, place: Path, monkeypatch) -> None:
    monkeypatch.setattr(farm, "SHOW_SECONDS", 0.0)
    monkeypatch.setattr(generated_sets, "PIECE", 2)
    overrides = [f"{name}={value}" for name, value in weights(place, "inception", "inception.pth").items()]
    run, found, killed = open_folder(str(place / "run")), {}, []

    def say(line: str) -> None:
        if "Inception's features of reconstruction: " in line and len(killed) == 0 and actors == 2:
            killed.append(line)
            _kill_an_actor()

    for actors in (1, 2, 4):
        for entry in run.list("samples/"):
            run.remove(entry.name)
        own = [*overrides, f"evaluation.actors={actors}", "evaluation.fid.sets=[reconstruction]"]
        found[actors] = evaluate(str(place / "run"), str(place / "data"), "fid", "latest", own, say)["fid"]
    assert killed, "an actor was killed while it summed up"
    assert found[1]["sets"]["reconstruction"]["counts"]["images"] in (11, 12)
    for actors in (2, 4):
        assert found[actors]["value"] == pytest.approx(found[1]["value"], rel=1e-4)
        for name in ("kid", "precision", "recall"):
            one, other = (found[n]["sets"]["reconstruction"][name]["value"] for n in (1, actors))
            assert other == pytest.approx(one, rel=1e-4, abs=1e-9)
    assert found[1]["inception"]["published"] is False
    assert run.read_json("eval/3/fid.json")["value"] == found[4]["value"]
