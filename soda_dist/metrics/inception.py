"""The Inception network of FID, KID, precision and recall (section E.2), from weights that the caller brings."""

import io
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from soda_dist.weights import fill, read_weights

PUBLISHED_FILE: Final = "weights-inception-2015-12-05-6726825d.pth"
"""What torch-fidelity would download: TensorFlow's weights of 2015, which published FIDs stand on."""
PUBLISHED_URL: Final = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{PUBLISHED_FILE}"
PUBLISHED_SHA256_PREFIX: Final = "6726825d"
"""The file's name ends in the digest's first eight digits."""

FEATURES: Final = 2048
_FIELD = "inception.weights"
_COUNTS = ".num_batches_tracked"


class Inception(FeatureExtractorInceptionV3):
    """torch-fidelity's network, which reads no weights by itself.

    The parent's constructor unpickles a file without protection, or downloads one. It is given an empty state dict of
    our own making instead, and that leaves the network as it is.
    """

    def __init__(self) -> None:
        nothing = io.BytesIO()
        torch.save({}, nothing)
        nothing.seek(0)
        super().__init__("inception-v3-compat", [str(FEATURES)], feature_extractor_weights_path=nothing)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        return super().load_state_dict(state_dict, strict=strict and bool(state_dict), assign=assign)


def load_inception(content: bytes, sha256: str) -> nn.Module:
    """torch-fidelity's InceptionV3 (TensorFlow's resize to 299 included) in eval mode on the CPU, for `features`.

    Nothing is downloaded, no random number is drawn. A file may lack batch norm's counts of batches: nothing reads
    them.

    Args:
        content: the weights' bytes, with the names of the published file: safetensors or PyTorch's format.
        sha256: digest that they must have, in hexadecimal.

    Raises:
        UserError: another digest, a file of anything but tensors, or another network's weights.
    """
    found = read_weights(content, sha256, field=_FIELD)
    with torch.device("meta"):
        net = Inception()
    net.to_empty(device="cpu")
    own: dict[str, Tensor] = net.state_dict()
    counts = {name: torch.zeros_like(tensor) for name, tensor in own.items() if name.endswith(_COUNTS)}
    fill(own, counts | found, field=_FIELD, network="torch-fidelity's InceptionV3")
    return net


def features(net: nn.Module, images: Tensor) -> Tensor:
    """Section E.2: pool features, float32 [B, 2048] on the network's device, without a gradient.

    The network resamples every size to 299 x 299 itself, so images must not be resized for it beforehand.

    Args:
        net: of `load_inception`.
        images: uint8 [B, 3, h, w] on the network's device.

    Raises:
        ValueError: images of another dtype or shape.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"features: got {images.dtype} {list(images.shape)}; allowed: torch.uint8 [B, 3, h, w]")
    with torch.no_grad():
        (pooled,) = net(images)
    return pooled


def is_published(sha256: str) -> bool:
    """Whether weights of this (verified) digest are those of `PUBLISHED_URL`, so that FIDs can be compared."""
    return sha256.lower().startswith(PUBLISHED_SHA256_PREFIX)
