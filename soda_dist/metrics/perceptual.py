"""LPIPS (section E.2): how far apart two images are to a network that was fitted to human judgement."""

import warnings
from pathlib import Path
from typing import Any, Final, Literal, get_args

import lpips
import torch
from torch import Tensor, nn

from soda_dist.weights import fill, read_weights

Trunk = Literal["alex", "vgg"]

PUBLISHED_URLS: Final[dict[Trunk, str]] = {
    "alex": "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    "vgg": "https://download.pytorch.org/models/vgg16-397923af.pth",
}
"""torchvision's ImageNet weights, which package lpips would download."""
PUBLISHED_SHA256_PREFIXES: Final[dict[Trunk, str]] = {"alex": "7be5be79", "vgg": "397923af"}
"""The files' names end in their digests' first eight digits."""

SMALLEST_SIDE: Final[dict[Trunk, int]] = {"alex": 31, "vgg": 16}
"""Smaller images leave nothing after a trunk's last pooling."""

_NETWORKS: Final[dict[Trunk, str]] = {"alex": "AlexNet", "vgg": "VGG-16"}
_VERSION = "0.1"
_FIELD = "lpips.weights"
_CLASSIFIER = "classifier."


class ImagesTooSmallError(ValueError):
    """Images that leave nothing after the trunk's last pooling.

    Args:
        size: their height and width.
        smallest: the shortest side that the trunk accepts.
    """

    def __init__(self, size: tuple[int, int], smallest: int) -> None:
        super().__init__(size, smallest)
        self.size, self.smallest = size, smallest

    def __str__(self) -> str:
        return f"lpips: got images of {list(self.size)}; needs {self.smallest} or more on each side"


def load_lpips(trunk_content: bytes, sha256: str, *, net: Trunk) -> nn.Module:
    """Package lpips' LPIPS, version 0.1, in eval mode on the CPU, for `lpips_distance`.

    The linear weights are those in the package, the trunk's come from the caller; nothing is downloaded, no random
    number is drawn.

    Args:
        trunk_content: bytes of torchvision's state dict of AlexNet or VGG-16, with its classifier or without:
            safetensors or PyTorch's format.
        sha256: digest that they must have, in hexadecimal.
        net: the trunk. The package recommends `alex` as a metric, `vgg` as a training loss.

    Raises:
        ValueError: a trunk that is not named above.
        UserError: another digest, a file of anything but tensors, or another network's weights.
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
    """Section E.2: the perceptual distance of each image to its reference, float32 [B], 0 for equal images.

    The library asks for RGB in [-1, 1], and scales it to its trunk's mean and variance itself. It takes every size
    from `SMALLEST_SIDE` on and resizes nothing, while distances depend on the size: 64 x 64 is what its linear weights
    were fitted on.

    Args:
        net: of `load_lpips`.
        images, reference: float [B, 3, h, w] in [-1, 1] on the network's device.

    Raises:
        ImagesTooSmallError: a side is shorter than the trunk's `SMALLEST_SIDE`.
        ValueError: the shapes differ, or images are not RGB or not floats.
    """
    if images.shape != reference.shape or images.ndim != 4 or images.shape[1] != 3:
        got = f"{list(images.shape)} and {list(reference.shape)}"
        raise ValueError(f"lpips: got {got}; allowed: [B, 3, h, w] twice")
    if not (images.is_floating_point() and reference.is_floating_point()):
        raise ValueError(f"lpips: got {images.dtype} and {reference.dtype}; allowed: floats in [-1, 1]")
    smallest = SMALLEST_SIDE[net.pnet_type]  # type: ignore[index]
    height, width = images.shape[2:]
    if min(height, width) < smallest:
        raise ImagesTooSmallError((height, width), smallest)
    with torch.no_grad():
        return net(images.float(), reference.float()).flatten()


def is_published(sha256: str, *, net: Trunk) -> bool:
    """Whether a trunk of this (verified) digest is that of `PUBLISHED_URLS`, so that distances can be compared."""
    return sha256.lower().startswith(PUBLISHED_SHA256_PREFIXES[net])


def _unfilled(net: Trunk) -> Any:
    """Without values, which would take seconds to draw for VGG's classifier alone, only to be thrown away."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"torchvision\.models")  # of lpips' own call
        model = lpips.LPIPS(net=net, version=_VERSION, pretrained=False, pnet_rand=True, verbose=False)
    model.net.to_empty(device="cpu")
    model.lins.to_empty(device="cpu")
    return model


def _torchvisions(name: str) -> str:
    """The package cuts `features.3.weight` out of torchvision's network as `slice2.3.weight`."""
    return f"features.{name.partition('.')[2]}"


def _packaged(net: Trunk) -> dict[str, Tensor]:
    path = Path(lpips.__file__).parent / "weights" / f"v{_VERSION}" / f"{net}.pth"
    return torch.load(path, map_location="cpu", weights_only=True)
