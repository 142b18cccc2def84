"""The Inception network of FID, KID, precision and recall (section E.2), with weights from the caller."""

from typing import Final

import torch
from torch import Tensor, nn

from soda_dist.weights import fill, read_weights

PUBLISHED_FILE: Final = "weights-inception-2015-12-05-6726825d.pth"
"""File that torch-fidelity would download: the TensorFlow weights of 2015, used by published FIDs."""
PUBLISHED_URL: Final = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{PUBLISHED_FILE}"
PUBLISHED_SHA256_PREFIX: Final = "6726825d"
"""The file's name ends in the digest's first eight digits."""

FEATURES: Final = 2048
_FIELD = "inception.weights"
_COUNTS = ".num_batches_tracked"


def load_inception(content: bytes, sha256: str) -> nn.Module:
    """Load torch-fidelity's InceptionV3 (TensorFlow's resize to 299 included), in eval mode on the CPU, for `features`.

    Downloads nothing and draws no random numbers. The weights may lack `num_batches_tracked`, which is unused.

    Args:
        content: bytes of the weights, named as in the published file: safetensors or PyTorch format.
        sha256: their required digest, in hexadecimal.

    Raises:
        UserError: another digest, content other than tensors, or weights of another network.
    """
    from soda_dist.metrics.inception_network import Inception

    found = read_weights(content, sha256, field=_FIELD)
    with torch.device("meta"):
        net = Inception()
    net.to_empty(device="cpu")
    own: dict[str, Tensor] = net.state_dict()
    counts = {name: torch.zeros_like(tensor) for name, tensor in own.items() if name.endswith(_COUNTS)}
    fill(own, counts | found, field=_FIELD, network="torch-fidelity's InceptionV3")
    return net


def features(net: nn.Module, images: Tensor) -> Tensor:
    """Compute pool features (section E.2): float32 [B, 2048] on the network's device, without gradients.

    The network resamples any size to 299 x 299 itself: do not resize images beforehand.

    Args:
        net: from `load_inception`.
        images: uint8 [B, 3, h, w] on the network's device; others raise ValueError.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"features: got {images.dtype} {list(images.shape)}; allowed: torch.uint8 [B, 3, h, w]")
    with torch.no_grad():
        (pooled,) = net(images)
    return pooled


def is_published(sha256: str) -> bool:
    """Return whether this (verified) digest is that of `PUBLISHED_URL`, so that FIDs can be compared."""
    return sha256.lower().startswith(PUBLISHED_SHA256_PREFIX)
