"""Safetensors files that are filled in host memory, so that writing one copies nothing and leaves Python free."""

import json
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Spec = tuple[torch.dtype, Sequence[int]]
"""Type and shape of a tensor."""
_TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_ALIGNMENT = 8


class TensorFile:
    """The bytes of a safetensors file; its tensors are views of them, undefined until they are filled in place.

    Args:
        specs: by name.
        pinned: whether the memory is page-locked, to which a GPU copies without a wait.
    """

    def __init__(self, specs: Mapping[str, Spec], *, pinned: bool = False) -> None:
        spans: dict[str, tuple[int, int]] = {}
        end = 0
        for name in sorted(specs, key=lambda name: -specs[name][0].itemsize):  # stable; keeps every tensor aligned
            dtype, shape = specs[name]
            start, end = end, end + dtype.itemsize * math.prod(shape)
            spans[name] = (start, end)
        places = {
            name: {"dtype": _TYPES[specs[name][0]], "shape": list(specs[name][1]), "data_offsets": span}
            for name, span in spans.items()
        }
        text = json.dumps(places, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        head = len(text).to_bytes(8, "little") + text
        self._bytes = torch.empty(len(head) + end, dtype=torch.uint8, pin_memory=pinned)
        self._bytes[: len(head)].copy_(torch.frombuffer(bytearray(head), dtype=torch.uint8))
        self.tensors: dict[str, Tensor] = {}
        for name, (start, stop) in spans.items():
            dtype, shape = specs[name]
            self.tensors[name] = self._bytes[len(head) + start : len(head) + stop].view(dtype).view(tuple(shape))

    @property
    def content(self) -> memoryview:
        """The whole file."""
        return self._bytes.numpy().data


def specs_of(tensors: Mapping[str, Tensor]) -> dict[str, Spec]:
    """Return the types and shapes of `tensors`."""
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
