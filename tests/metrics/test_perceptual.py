"""LPIPS against package lpips building itself from the same trunk."""

import hashlib
import pickle
from types import SimpleNamespace
from typing import Any, get_args

import lpips
import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torchvision import models
from torchvision.models import AlexNet_Weights, VGG16_Weights

from soda_dist.errors import UserError
from soda_dist.metrics import perceptual
from soda_dist.metrics.perceptual import (
    SMALLEST_SIDE,
    ImagesTooSmallError,
    Trunk,
    is_published,
    load_lpips,
    lpips_distance,
)
from tests.metrics.networks import saved

pytestmark = pytest.mark.usefixtures("without_network")

TRUNKS = get_args(Trunk)


def drawn(net: Trunk) -> nn.Module:
    """torchvision's layers before the classifier, with test weights."""
    torch.manual_seed(3)
    if net == "alex":
        return models.alexnet(num_classes=1).features
    return models.vgg.make_layers(models.vgg.cfgs["D"], batch_norm=False)


def tensors_of(layers: nn.Module) -> dict[str, Tensor]:
    return {f"features.{name}": tensor for name, tensor in layers.state_dict().items()}


def load(content: bytes, net: Trunk) -> nn.Module:
    return load_lpips(content, hashlib.sha256(content).hexdigest(), net=net)


@pytest.fixture(scope="module")
def trunks() -> dict[Trunk, nn.Module]:
    return {net: drawn(net) for net in TRUNKS}


@pytest.fixture(scope="module")
def loaded(trunks: dict[Trunk, nn.Module]) -> dict[Trunk, nn.Module]:
    """Files as torchvision's, with a classifier."""
    classifier = {"classifier.6.weight": torch.ones(2, 2), "classifier.6.bias": torch.ones(2)}
    return {net: load(saved(tensors_of(trunks[net]) | classifier), net) for net in TRUNKS}


def package(net: Trunk, trunks: dict[Trunk, nn.Module], monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the package makes of itself where torchvision hands it the trunk."""
    name = {"alex": "alexnet", "vgg": "vgg16"}[net]
    monkeypatch.setattr(
        lpips.pretrained_networks.tv, name, lambda pretrained: SimpleNamespace(features=trunks[net].requires_grad_())
    )
    return lpips.LPIPS(net=net, verbose=False)


def images(count: int, side: int, seed: int) -> Tensor:
    return torch.rand(count, 3, side, side + 5, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("net", TRUNKS)
def test_distances_are_the_packages_own(net, trunks, loaded, monkeypatch):
    theirs = package(net, trunks, monkeypatch)
    for side in (SMALLEST_SIDE[net], 48):
        x, y = images(3, side, 4), images(3, side, 5)
        y[0] = x[0]
        found = lpips_distance(loaded[net], x, y)
        assert found.dtype == torch.float32 and not found.requires_grad
        assert torch.equal(found, theirs(x, y).detach().view(3))
        assert found[0] == 0 and found[1] > 1e-3 and found[1] != found[2]
        assert torch.equal(lpips_distance(loaded[net], x.double(), y.double()), found)
    normalised = theirs((x + 1) / 2, (y + 1) / 2, normalize=True).detach().view(3)
    torch.testing.assert_close(found, normalised, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("net", TRUNKS)
def test_every_tensor_is_the_packages_own(net, trunks, loaded, monkeypatch):
    found, expected = loaded[net].state_dict(), package(net, trunks, monkeypatch).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert not any(module.training for module in loaded[net].modules())
    assert not any(parameter.requires_grad for parameter in loaded[net].parameters())


@pytest.mark.parametrize("net", TRUNKS)
def test_images_below_the_smallest_side_are_too_small_for_the_package_too(net, loaded):
    side = SMALLEST_SIDE[net] - 1
    x = images(1, side, 6)
    with pytest.raises(RuntimeError):
        loaded[net](x, x)
    says = rf"^lpips: got images of \[{side}, {side + 5}\]; allowed: {side + 1} or more"
    with pytest.raises(ImagesTooSmallError, match=says) as caught:
        lpips_distance(loaded[net], x, x)
    assert (caught.value.size, caught.value.smallest) == ((side, side + 5), side + 1)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_images_of_another_kind_are_refused(loaded):
    x = images(2, 40, 7)
    for pair in ((x, x[:1]), (x[0], x[0]), (x[:, :1], x[:, :1])):
        with pytest.raises(ValueError, match=r"^lpips: got \[.*\] and \[.*\]; allowed: equal shapes \[B, 3, h, w\]$"):
            lpips_distance(loaded["alex"], *pair)
    with pytest.raises(ValueError, match=r"^lpips: got torch.float32 and torch.uint8; allowed: floats in \[-1, 1\]$"):
        lpips_distance(loaded["alex"], x, x.byte())


def test_safetensors_without_a_classifier_will_do_and_no_random_number_is_drawn(trunks, loaded):
    content = save(tensors_of(trunks["alex"]))
    state = torch.get_rng_state()
    found = load(content, "alex")
    assert torch.equal(torch.get_rng_state(), state)
    x, y = images(1, 40, 8), images(1, 40, 9)
    assert torch.equal(lpips_distance(found, x, y), lpips_distance(loaded["alex"], x, y))


def test_nothing_is_said_while_loading(trunks, recwarn, capfd):
    load(save(tensors_of(trunks["alex"])), "alex")
    assert not list(recwarn) and capfd.readouterr() == ("", "")


class Bomb:
    """Unpickling it would be noticed."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return pytest.fail, ("a pickle was run",)


def refusal(content: bytes, net: Trunk, sha256: str | None = None) -> UserError:
    with pytest.raises(UserError) as caught:
        load_lpips(content, hashlib.sha256(content).hexdigest() if sha256 is None else sha256, net=net)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
    return caught.value


def test_another_file_is_refused(trunks):
    alex = tensors_of(trunks["alex"])
    assert refusal(save(alex), "alex", "0" * 64).field == "lpips.weights_sha256"
    assert refusal(saved(alex | {"bomb": Bomb()}), "alex").field == refusal(b"", "alex").field == "lpips.weights"
    error = refusal(save(alex), "vgg")
    assert "without features.12.bias, " in str(error) and "shape or kind of number in features.0.weight" in str(error)
    assert "with unknown features.11.weight;" in str(
        refusal(save(alex | {"features.11.weight": torch.ones(1)}), "alex")
    )


def test_another_trunk_is_refused():
    with pytest.raises(ValueError, match=r"^net: got squeeze; allowed: alex, vgg$"):
        load_lpips(b"", "", net="squeeze")  # type: ignore[arg-type]


def test_published_trunks_are_those_that_torchvision_names():
    urls = {"alex": AlexNet_Weights.IMAGENET1K_V1.url, "vgg": VGG16_Weights.IMAGENET1K_V1.url}
    assert urls == perceptual.PUBLISHED_URLS
    for net in TRUNKS:
        prefix = perceptual.PUBLISHED_SHA256_PREFIXES[net]
        assert urls[net].endswith(f"-{prefix}.pth")
        assert is_published(prefix.upper() + "0" * 56, net=net)
        assert not any(is_published(prefix + "0" * 56, net=other) for other in TRUNKS if other != net)
