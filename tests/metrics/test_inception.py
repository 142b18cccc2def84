"""The Inception network against torch-fidelity's own use of it: same weights, same images, same values."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torch_fidelity import calculate_metrics
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

from soda_dist.errors import UserError
from soda_dist.metrics import inception
from soda_dist.metrics.distributions import fid, kid, moments, precision_recall
from soda_dist.metrics.inception import features, is_published, load_inception
from tests.metrics.networks import inception_weights, saved

pytestmark = pytest.mark.usefixtures("without_network")


def load(content: bytes) -> nn.Module:
    return load_inception(content, hashlib.sha256(content).hexdigest())


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return inception_weights()


@pytest.fixture(scope="module")
def file(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "test.pth"
    path.write_bytes(saved(weights))
    return path


@pytest.fixture(scope="module")
def net(file: Path) -> nn.Module:
    return load(file.read_bytes())


def images(count: int, seed: int, brightest: int = 256, size: tuple[int, int] = (20, 28)) -> Tensor:
    """Of squares in random colours, so that they differ as whole images too."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, brightest, (count, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return coarse.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)[:, :, : size[0], : size[1]]


class Images(TensorDataset):
    """Gives images as torch-fidelity wants them, not in tuples."""

    def __getitem__(self, index: int) -> Tensor:
        return super().__getitem__(index)[0]


@pytest.mark.slow
def test_metrics_of_images_are_torch_fidelitys(net: nn.Module, file: Path) -> None:
    generated, real = images(7, 2, brightest=200), images(8, 3)
    theirs = calculate_metrics(
        input1=Images(generated),
        input2=Images(real),
        fid=True,
        kid=True,
        prc=True,
        kid_subsets=5,
        kid_subset_size=6,
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(file),
        batch_size=4,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    ours, others = (torch.cat([features(net, part) for part in side.split(4)]) for side in (generated, real))
    assert ours.dtype == torch.float32 and ours.shape == (7, 2048)
    assert float(ours.std(dim=0).mean()) > 1e-2
    distance = kid(ours, others, subsets=5, subset_size=6)
    found = precision_recall(ours, others)
    assert distance.mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4, abs=1e-6)
    assert distance.std == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-4, abs=1e-6)
    assert found.precision == pytest.approx(theirs["precision"], abs=1e-6)
    assert found.recall == pytest.approx(theirs["recall"], abs=1e-6)
    assert fid(moments(ours), moments(others)) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)


def test_features_are_torch_fidelitys_bit_by_bit(net: nn.Module, file: Path) -> None:
    theirs = FeatureExtractorInceptionV3("reference", ["2048"], feature_extractor_weights_path=str(file))
    for batch in (images(2, 4), images(1, 5, size=(31, 9))):
        found = features(net, batch)
        assert torch.equal(found, theirs(batch)[0])
        assert not found.requires_grad
    assert not any(module.training for module in net.modules())
    assert not any(parameter.requires_grad for parameter in net.parameters())


def test_both_formats_give_the_same_network_and_counts_may_be_missing(
    net: nn.Module, weights: dict[str, Tensor]
) -> None:
    without = {name: tensor for name, tensor in weights.items() if not name.endswith("num_batches_tracked")}
    assert len(without) < len(weights)
    state = torch.get_rng_state()
    found = load(save(without)).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(found[name], tensor) for name, tensor in without.items())
    assert all(not found[name].any() for name in weights.keys() - without.keys())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in net.state_dict().items())


class Bomb:
    """Unpickling it would be noticed."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return pytest.fail, ("a pickle was run",)


def refusal(content: bytes, sha256: str | None = None) -> UserError:
    with pytest.raises(UserError) as caught:
        load_inception(content, hashlib.sha256(content).hexdigest() if sha256 is None else sha256)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
    return caught.value


def test_another_file_is_refused(weights: dict[str, Tensor]) -> None:
    content = saved({"a": torch.zeros(1)})
    assert refusal(content, "0" * 64).field == "inception.weights_sha256"
    assert refusal(saved({"a": Bomb()})).field == refusal(b"<html>").field == "inception.weights"
    error = refusal(content)
    assert "without Conv2d_1a_3x3.bn.bias, " in str(error) and "and weights with unknown a;" in str(error)
    named = {name: torch.zeros(tensor.shape) for name, tensor in weights.items() if "num_batches" not in name}
    named["fc.weight"] = torch.zeros(1000, 2048)
    assert "with another shape or kind of number in fc.weight;" in str(refusal(save(named)))


def test_images_of_another_kind_are_refused(net: nn.Module) -> None:
    for batch in (images(1, 6).float(), images(1, 6)[0], images(1, 6)[:, :1]):
        with pytest.raises(ValueError, match=r"^features: got torch\..* allowed: torch.uint8 \[B, 3, h, w\]$"):
            features(net, batch)


def test_published_weights_are_those_that_torch_fidelity_names() -> None:
    assert inception.PUBLISHED_URL == URL_INCEPTION_V3
    assert inception.PUBLISHED_URL.endswith(f"/{inception.PUBLISHED_FILE}")
    assert inception.PUBLISHED_FILE.endswith(f"-{inception.PUBLISHED_SHA256_PREFIX}.pth")
    assert is_published("6726825d" + "0" * 56) and is_published("6726825D" + "A" * 56)
    assert not is_published("0" * 8 + "6726825d" + "0" * 48)
