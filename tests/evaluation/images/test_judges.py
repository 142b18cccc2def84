"""LPIPS, and Inception's features and their moments, against the libraries' own use of the networks."""

import hashlib
from dataclasses import replace
from pathlib import Path

import lpips
import numpy as np
import pytest
import torch
from torch.utils.data import Dataset
from torch_fidelity import calculate_metrics

from soda_dist.config.load import with_fields
from soda_dist.data.storage.folder import Folder
from soda_dist.errors import UserError
from soda_dist.evaluation.context import Context
from soda_dist.evaluation.images import generated_sets
from soda_dist.evaluation.images.generated_sets import ImageSet, SetPiece, generate_set, load_set, plan_images
from soda_dist.evaluation.images.judges import check_weights, facts_of, judge_of, lpips_scores, set_moments
from soda_dist.evaluation.images.scores import images_of
from soda_dist.evaluation.worker import Models
from soda_dist.metrics import inception
from soda_dist.metrics.distributions import fid
from soda_dist.metrics.perceptual import load_lpips
from soda_dist.parallel.local_pool import LocalPool
from soda_dist.parallel.pool import Held
from tests.evaluation.contexts import context_of, voiced
from tests.evaluation.images.colours import colours, stand_in
from tests.evaluation.scattered_pool import ScatteredPool
from tests.tiny import tiny_config

Drawn = tuple[Context, Folder, list[SetPiece]]
LARGER = {"data": {"source_size": 32, "target_size": 32}, "denoiser": {"attention_resolutions": (16,)}}
"""As large as LPIPS needs images."""


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def weights(name: str, file: Path) -> dict[str, str]:
    """The configuration's fields that allow a test file; LPIPS' is AlexNet's."""
    found = {f"evaluation.{name}.weights": str(file), f"evaluation.{name}.weights_sha256": digest(file)}
    return found | ({"evaluation.lpips.net": "alex"} if name == "lpips" else {})


@pytest.fixture(scope="module")
def models(small_set: Path, inception_file: Path, alexnet_file: Path) -> Models:
    config = tiny_config(**LARGER, evaluation={"batch": 2})
    fields = {**weights("inception", inception_file), **weights("lpips", alexnet_file)}
    return voiced(with_fields(config, fields), small_set)


@pytest.fixture(scope="module")
def drawn(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    """Reconstructions of all thirty test images, one of which is unreadable, in pieces of three."""
    context = context_of(models, tmp_path_factory.mktemp("judged"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generated_sets, "PIECE", 3)
        pieces = plan_images(context, ImageSet("reconstruction", "test", models.config.sampling), 30)
        return context, generate_set(context, pieces, "drawn"), pieces


def _pair(folder: Folder, pieces: list[SetPiece]) -> list[np.ndarray]:
    """The readable images as they were drawn, and as they should be: uint8 [n, h, w, 3]."""
    table = load_set(folder, pieces, ["image", "target"])
    return [images_of(table.column(side)) for side in ("image", "target")]


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


def test_lpips_is_the_packages(drawn: Drawn, alexnet_file: Path) -> None:
    context, folder, pieces = drawn
    pair = [torch.from_numpy(images).permute(0, 3, 1, 2).float() for images in _pair(folder, pieces)]
    assert len(pair[0]) == 29
    package = lpips.LPIPS(net="alex", pnet_rand=True, pretrained=False, verbose=False)
    own = load_lpips(alexnet_file.read_bytes(), digest(alexnet_file), net="alex")
    package.load_state_dict(own.state_dict())
    expected = package(pair[0] / 127.5 - 1, pair[1] / 127.5 - 1).flatten().detach().double().numpy()
    np.testing.assert_allclose(lpips_scores(context, folder, pieces), expected, rtol=1e-4, atol=1e-6)


def _with_the_unreadable(pieces: list[SetPiece], count: int) -> list[SetPiece]:
    """Some pieces, the first of which has the unreadable member."""
    (unreadable,) = (at for at, piece in enumerate(pieces) if 0 in piece.keys)
    return (pieces[unreadable:] + pieces[:unreadable])[:count]


def test_moments_are_those_of_inceptions_features(drawn: Drawn, models: Models) -> None:
    """`metrics.inception.features` is held against torch-fidelity."""
    context, folder, pieces = drawn
    some = _with_the_unreadable(pieces, 2)
    net = judge_of(models, "inception").net
    for side, images in zip(("image", "target"), _pair(folder, some), strict=True):
        found, _ = set_moments(context, folder, some, side, 0)
        features = inception.features(net, torch.from_numpy(images).permute(0, 3, 1, 2)).double().numpy()
        apart = features - features.mean(0)
        assert found.count == 5 and found.mean.shape == (2048,)
        np.testing.assert_allclose(found.mean, features.mean(0), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found.scatter, apart.T @ apart, rtol=1e-3, atol=1e-5)


@pytest.mark.long  # torch-fidelity takes the root of a matrix of 2048 rows
def test_fid_is_torch_fidelitys(drawn: Drawn, inception_file: Path) -> None:
    context, folder, pieces = drawn
    some = _with_the_unreadable(pieces, 4)
    moments = [set_moments(context, folder, some, side, 0)[0] for side in ("image", "target")]
    assert [each.count for each in moments] == [11, 11]
    assert fid(*moments) == pytest.approx(by_torch_fidelity(*_pair(folder, some), inception_file), rel=1e-4)


@pytest.mark.parametrize("side", ["image", "target"])
def test_moments_are_those_of_all_features_whoever_found_them(
    side: str, drawn: Drawn, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch)
    context, folder, pieces = drawn
    features = colours(_pair(folder, pieces)[side == "target"])
    pools = [LocalPool(), *(ScatteredPool(seed) for seed in range(4))]
    found = []
    for pool in pools:
        context = replace(context, workers=pool.with_state(Held(models)))
        found.append(set_moments(context, folder, pieces, side, 7))
    for moments, first in found:
        assert (moments.mean == found[0][0].mean).all() and (moments.scatter == found[0][0].scatter).all()
        assert moments.count == 29 and torch.equal(first, torch.from_numpy(features[:7]))
    moments, apart = found[0][0], features.astype(np.float64) - features.astype(np.float64).mean(0)
    np.testing.assert_allclose(moments.mean, features.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.scatter, apart.T @ apart, rtol=1e-9, atol=1e-12)


def test_features_are_kept_of_the_first_members_only(drawn: Drawn, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    context, folder, pieces = drawn
    assert set_moments(context, folder, pieces, "image", 0)[1].shape == (0, 6)
    (unreadable,) = (at for at, piece in enumerate(pieces) if 0 in piece.keys)
    last = unreadable + 1
    kept = set_moments(context, folder, pieces, "image", 3 * last)[1]
    assert torch.equal(kept, torch.from_numpy(colours(_pair(folder, pieces[:last])[0]))), "one member is unreadable"


def test_weights_that_are_not_the_published_ones_need_their_digest(models: Models, inception_file: Path) -> None:
    facts = {"sha256": digest(inception_file), "published": False}
    assert judge_of(models, "inception").facts == facts == facts_of(models, "inception")
    assert judge_of(models, "inception") is judge_of(models, "inception"), "read once"
    assert judge_of(models, "lpips").facts["net"] == "alex"
    fields = {"evaluation.inception.weights_sha256": None}
    other = replace(models, config=with_fields(models.config, fields), kept={})
    with pytest.raises(UserError, match=r"got a file of digest .*allowed: the published weights; download https://"):
        judge_of(other, "inception")
    wrong = with_fields(models.config, {"evaluation.inception.weights_sha256": "0" * 64})
    with pytest.raises(UserError, match=r"inception\.weights_sha256"):
        judge_of(replace(models, config=wrong, kept={}), "inception")


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


def test_images_too_small_for_lpips_are_told_in_one_line(small_set: Path, alexnet_file: Path, tmp_path: Path) -> None:
    config = with_fields(tiny_config(sampling={"steps": 1}), weights("lpips", alexnet_file))
    context = context_of(voiced(config, small_set), tmp_path)
    pieces = plan_images(context, ImageSet("reconstruction", "test", config.sampling), 3)
    with pytest.raises(UserError, match=r"evaluation.lpips: .*at least 31 pixels a side"):
        lpips_scores(context, generate_set(context, pieces, "drawn"), pieces)
