"""Weights that others trained: bytes verified by their digest, read without running any of them."""

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
"""Names that a message lists at most."""


def read_weights(content: bytes, sha256: str, *, field: str) -> dict[str, Tensor]:
    """A file's tensors by name, on the CPU.

    Args:
        content: the file's bytes: safetensors, or what `torch.save` makes of a state dict.
        sha256: digest that they must have, in hexadecimal; nothing is parsed before it is found right.
        field: what errors call the file, and with `_sha256` after it the digest.

    Raises:
        UserError: another digest, or anything but tensors by name, such as a pickle that would run something.
    """
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256.lower():
        got = f"{sha256}, where the file's is {digest}"
        raise UserError(f"{field}_sha256", got, "the digest of the weights", "get the right file, or correct it")
    if content[8:9] == b"{":
        return _safetensors(content, field)
    return _state_dict(content, field)


def fill(own: Mapping[str, Tensor], found: Mapping[str, Tensor], *, field: str, network: str) -> None:
    """Copies `found` into the tensors of `own`, all or none; floats become floats of `own`'s dtype.

    `network` is what errors call the owner of the tensors.

    Raises:
        UserError: names, shapes or kinds of number that are not those of `own`.
    """
    complaints = {
        "without": sorted(own.keys() - found.keys()),
        "with unknown": sorted(found.keys() - own.keys()),
        "with another shape or kind of number in": [n for n in own if n in found and not _fits(found[n], own[n])],
    }
    if any(complaints.values()):
        got = " and ".join(f"weights {how} {_listed(names)}" for how, names in complaints.items() if names)
        raise UserError(field, got, f"the tensors of {network}", "get the weights that belong to it")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(found[name])


def _safetensors(content: bytes, field: str) -> dict[str, Tensor]:
    try:
        return load_tensors(content)
    except (SafetensorError, KeyError) as error:  # KeyError: a dtype that torch does not have
        raise _unreadable(content, error, field) from None


def _state_dict(content: bytes, field: str) -> dict[str, Tensor]:
    try:
        found: Any = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make the reader raise almost anything
        raise _unreadable(content, error, field) from None
    if not isinstance(found, dict) or not all(isinstance(n, str) and isinstance(t, Tensor) for n, t in found.items()):
        raise _unreadable(content, TypeError(), field)
    return dict(found)


def _unreadable(content: bytes, error: Exception, field: str) -> UserError:
    """Names the error's kind alone: torch's own words fill many lines and advise to switch the protection off."""
    got = f"{len(content)} bytes that are neither ({type(error).__name__})"
    allowed = "safetensors or a PyTorch file of nothing but tensors by name"
    return UserError(field, got, allowed, "convert the weights, or get them again")


def _fits(tensor: Tensor, own: Tensor) -> bool:
    return tensor.shape == own.shape and tensor.is_floating_point() == own.is_floating_point()


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
