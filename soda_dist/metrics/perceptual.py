"""LPIPS (section E.2): distance of two images in a network fitted to human judgement."""

import warnings
from pathlib import Path
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor, nn

from soda_dist.weights import fill, read_weights

Trunk = Literal["alex", "vgg"]

PUBLISHED_URLS: Final[dict[Trunk, str]] = {
    "alex": "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    "vgg": "https://download.pytorch.org/models/vgg16-397923af.pth",
}
"""torchvision's ImageNet weights, which the lpips package would download."""
PUBLISHED_SHA256_PREFIXES: Final[dict[Trunk, str]] = {"alex": "7be5be79", "vgg": "397923af"}
"""First eight digits of the digests, as in the file names."""

SMALLEST_SIDE: Final[dict[Trunk, int]] = {"alex": 31, "vgg": 16}
"""Smallest side of an image that survives a trunk's last pooling."""

_NETWORKS: Final[dict[Trunk, str]] = {"alex": "AlexNet", "vgg": "VGG-16"}
_VERSION = "0.1"
_FIELD = "lpips.weights"
_CLASSIFIER = "classifier."


class ImagesTooSmallError(ValueError):
    """Images of `size` (height, width) are too small for the trunk, which needs sides of `smallest`."""

    def __init__(self, size: tuple[int, int], smallest: int) -> None:
        super().__init__(size, smallest)
        self.size, self.smallest = size, smallest

    def __str__(self) -> str:
        return f"lpips: got images of {list(self.size)}; allowed: {self.smallest} or more on each side"


def load_lpips(trunk_content: bytes, sha256: str, *, net: Trunk) -> nn.Module:
    """Load package lpips' LPIPS, version 0.1, in eval mode on the CPU, for `lpips_distance`.

    The package provides the linear weights, the caller those of the trunk. Downloads nothing, draws no random numbers.

    Args:
        trunk_content: bytes of torchvision's state dict of AlexNet or VGG-16, with or without its classifier:
            safetensors or PyTorch format.
        sha256: their required digest, in hexadecimal.
        net: the trunk. The package recommends `alex` as a metric, `vgg` as a training loss.

    Raises:
        ValueError: an unknown trunk.
        UserError: another digest, content other than tensors, or weights of another network.
    """
    if net not in get_args(Trunk):
        raise ValueError(f"net: got {net}; allowed: {', '.join(get_args(Trunk))}")
    found = read_weights(trunk_content, sha256, field=_FIELD)
    model = _unfilled(net)
    trunk = {_torchvisions(name): tensor for name, tensor in model.net.state_dict().items()}
    fill(
        trunk,
        {name: t for name, t in found.items() if not name.startswith(_CLASSIFIER)},
        field=_FIELD,
        network=f"torchvision's {_NETWORKS[net]}",
    )
    linear = {f"lin{name}": tensor for name, tensor in model.lins.state_dict().items()}
    fill(linear, _packaged(net), field="lpips", network="package lpips")
    return model.eval().requires_grad_(False)


def lpips_distance(net: nn.Module, images: Tensor, reference: Tensor) -> Tensor:
    """Measure the perceptual distance of each image to its reference (section E.2): float32 [B], 0 for equal images.

    The package normalises for its trunk. It accepts any size from `SMALLEST_SIDE` on without resizing, but distances
    depend on the size: its linear weights were fitted on 64 x 64.

    Args:
        net: from `load_lpips`.
        images, reference: float [B, 3, h, w] in [-1, 1] on the network's device.

    Raises:
        ImagesTooSmallError: a side is shorter than the trunk's `SMALLEST_SIDE`.
        ValueError: other shapes or dtypes.
    """
    if images.shape != reference.shape or images.ndim != 4 or images.shape[1] != 3:
        got = f"{list(images.shape)} and {list(reference.shape)}"
        raise ValueError(f"lpips: got {got}; allowed: equal shapes [B, 3, h, w]")
    if not (images.is_floating_point() and reference.is_floating_point()):
        raise ValueError(f"lpips: got {images.dtype} and {reference.dtype}; allowed: floats in [-1, 1]")
    smallest = SMALLEST_SIDE[net.pnet_type]  # type: ignore[index]
    height, width = images.shape[2:]
    if min(height, width) < smallest:
        raise ImagesTooSmallError((height, width), smallest)
    with torch.no_grad():
        return net(images.float(), reference.float()).flatten()


def is_published(sha256: str, *, net: Trunk) -> bool:
    """Return whether this (verified) digest is that of `PUBLISHED_URLS`, so that distances can be compared."""
    return sha256.lower().startswith(PUBLISHED_SHA256_PREFIXES[net])


def _unfilled(net: Trunk) -> Any:
    """Build the network without initial values: drawing those of the VGG classifier takes seconds."""
    import lpips

    with torch.device("meta"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"torchvision\.models")  # from the call in lpips
        model = lpips.LPIPS(net=net, version=_VERSION, pretrained=False, pnet_rand=True, verbose=False)
    model.net.to_empty(device="cpu")
    model.lins.to_empty(device="cpu")
    return model


def _torchvisions(name: str) -> str:
    """Return torchvision's name of a tensor: the package renames `features.3.weight` to `slice2.3.weight`."""
    return f"features.{name.partition('.')[2]}"


def _packaged(net: Trunk) -> dict[str, Tensor]:
    import lpips

    path = Path(lpips.__file__).parent / "weights" / f"v{_VERSION}" / f"{net}.pth"
    return torch.load(path, map_location="cpu", weights_only=True)
