"""Third-party weights, verified by digest and read without running code in them."""

import hashlib
import io
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from soda_dist.errors import UserError

_SHOWN = 5
"""Maximum number of names in a message."""


def read_weights(content: bytes, sha256: str, *, field: str) -> dict[str, Tensor]:
    """Read a file's tensors by name, on the CPU.

    Args:
        content: safetensors, or a state dict written by `torch.save`.
        sha256: required digest in hexadecimal, checked before parsing.
        field: name of the file in errors; with `_sha256` appended, of the digest.

    Raises:
        UserError: another digest, or content other than named tensors, such as a pickle with code.
    """
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256.lower():
        got = f"{sha256} for a file with digest {digest}"
        remedy = "correct the digest, or download the right file"
        raise UserError(f"{field}_sha256", got, "the digest of the weights", remedy)
    if content[8:9] == b"{":
        return _safetensors(content, field)
    return _state_dict(content, field)


def fill(own: Mapping[str, Tensor], found: Mapping[str, Tensor], *, field: str, network: str) -> None:
    """Copy `found` into the tensors of `own`, all or none; floats are cast to the dtype of `own`.

    Raises:
        UserError: names, shapes or kinds of number differ from those of `own`, which belong to `network`, or a value is
            not finite.
    """
    complaints = {
        "without": sorted(own.keys() - found.keys()),
        "with unknown": sorted(found.keys() - own.keys()),
        "with another shape or kind of number in": [n for n in own if n in found and not _fits(found[n], own[n])],
        "with values that are not finite in": [n for n in own if n in found and not torch.isfinite(found[n]).all()],
    }
    if any(complaints.values()):
        got = " and ".join(f"weights {fault} {_listed(names)}" for fault, names in complaints.items() if names)
        raise UserError(field, got, f"the tensors of {network}", "use weights of this network")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(found[name])


def _safetensors(content: bytes, field: str) -> dict[str, Tensor]:
    try:
        return load_tensors(content)
    except (SafetensorError, KeyError) as error:  # KeyError: a dtype that torch lacks
        raise _unreadable(content, error, field) from None


def _state_dict(content: bytes, field: str) -> dict[str, Tensor]:
    try:
        found: Any = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise almost anything
        raise _unreadable(content, error, field) from None
    if not isinstance(found, dict) or not all(isinstance(n, str) and isinstance(t, Tensor) for n, t in found.items()):
        raise _unreadable(content, TypeError(), field)
    return dict(found)


def _unreadable(content: bytes, error: Exception, field: str) -> UserError:
    """Report only the type of `error`: torch's text is long and advises to turn the protection off."""
    got = f"{len(content)} bytes that are neither ({type(error).__name__})"
    allowed = "safetensors, or a PyTorch file of named tensors only"
    return UserError(field, got, allowed, "convert the weights, or download them again")


def _fits(tensor: Tensor, own: Tensor) -> bool:
    return tensor.shape == own.shape and tensor.is_floating_point() == own.is_floating_point()


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
