"""EMA weights under plain names, put together from fragments without a model: the files that evaluation reads."""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from soda_dist.data.storage.folder import Folder
from soda_dist.data.storage.metadata import parse_json
from soda_dist.models.lr_equalization import plain_names
from soda_dist.training.engines.engine import Engine
from soda_dist.training.snapshot import is_frozen
from soda_dist.training.tensor_file import Spec, TensorFile, specs_of

MODEL, ENCODER = "model.safetensors", "encoder.safetensors"
EMA = "ema"


class Piece(NamedTuple):
    """Consecutive EMA values of a parameter, from `start` of its flattened elements."""

    name: str
    start: int
    values: Tensor


class Exports:
    """Makes the files of an engine's model; holds names and shapes only."""

    def __init__(self, engine: Engine) -> None:
        model = engine.objective.model
        self._names = {f"model.{name}": plain for name, plain in plain_names(model).items()}
        self._shapes = engine.shapes
        self._with_encoder = not is_frozen(model)

    def make(self, ema: Iterable[Piece], buffers: Mapping[str, Tensor]) -> dict[str, TensorFile]:
        """Fill the model's file and, if one is trained, the encoder's.

        Args:
            ema: every element of every parameter once.
            buffers: by their names in the model.
        """
        specs, others = dict[str, Spec](), specs_of(buffers)
        for stored, (plain, _) in self._names.items():
            if stored in self._shapes:
                specs[plain] = (torch.float32, tuple(self._shapes[stored]))
            else:
                specs[plain] = others[stored.removeprefix("model.")]
        model = TensorFile(specs)
        missing = sum(shape.numel() for name, shape in self._shapes.items() if name in self._names)
        for name, start, values in ema:
            plain, ratio = self._names[name]
            torch.mul(values, ratio, out=model.tensors[plain].view(-1)[start : start + len(values)])
            missing -= len(values)
        if missing:
            raise RuntimeError(f"the fragments of the EMA lack {missing} elements of the model")
        for name, buffer in buffers.items():
            model.tensors[self._names[f"model.{name}"][0]].copy_(buffer)
        prefix = "encoder."
        encoder = {n.removeprefix(prefix): t for n, t in model.tensors.items() if n.startswith(prefix)}
        if not (encoder and self._with_encoder):
            return {MODEL: model}
        alone = TensorFile(specs_of(encoder))
        for name, tensor in encoder.items():
            alone.tensors[name].copy_(tensor)
        return {MODEL: model, ENCODER: alone}


def pieces(tensors: Mapping[str, Tensor]) -> Iterator[Piece]:
    """Yield the EMA pieces among tensors named KIND/PARAMETER/START."""
    for key, values in tensors.items():
        kind, name, start = key.split("/")
        if kind == EMA:
            yield Piece(name, int(start), values)


def stored_pieces(folder: Folder, name: str) -> Iterator[Piece]:
    """Read the EMA pieces of a state file that another rank has just written; they lie together in it."""
    with folder.open(name) as file:

        def read(start: int, count: int) -> bytes:
            return folder.retry(name, lambda: file.read_at(count, start))

        size = int.from_bytes(read(0, 8), "little")
        places = parse_json(read(8, size), folder.file_uri(name))
        spans = {key: place["data_offsets"] for key, place in places.items() if key.startswith(f"{EMA}/")}
        low, high = min(start for start, _ in spans.values()), max(stop for _, stop in spans.values())
        block = torch.frombuffer(bytearray(read(8 + size + low, high - low)), dtype=torch.float32)
    yield from pieces({key: block[(start - low) // 4 : (stop - low) // 4] for key, (start, stop) in spans.items()})
