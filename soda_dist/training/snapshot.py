"""A worker's training state in host memory, as the files that will hold it: what training stops for."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from soda_dist.models.method import Method
from soda_dist.models.pretrained import FrozenEncoder
from soda_dist.training.engines.engine import KINDS, Engine, Fragment
from soda_dist.training.tensor_file import Spec, TensorFile, specs_of

PART_BYTES = 255 << 20
"""Size limit of a state file, unless one parameter exceeds it; page-locked memory comes in powers of two."""


class Snapshot:
    """Copies of the fragments that a rank owns and, on the first rank, of buffers and the online probe.

    Takes 16 bytes of host memory for each parameter that the rank owns, page-locked where the state is on a GPU, and
    keeps them: each `take` overwrites the one before.

    Attributes:
        parts: files of fragments, tensors KIND/PARAMETER/START, a kind's together.
        buffers, probe: files of the first rank; None on others, or without an online probe.
        frozen: buffers of a frozen encoder, under their names in the model.
    """

    def __init__(self) -> None:
        self.parts: list[TensorFile] = []
        self.buffers: TensorFile | None = None
        self.probe: TensorFile | None = None
        self.frozen: dict[str, Tensor] = {}
        self._views: dict[str, Tensor] = {}

    @torch.no_grad()
    def take(self, engine: Engine, *, first: bool) -> None:
        """Copy the state of `engine`, whose layout never changes; returns when the copies are whole.

        Args:
            first: whether this is the first rank.
        """
        owned = [piece for piece in engine.fragments() if piece.owned]
        model, probe = engine.objective.model, engine.objective.online_probe
        buffers = saved_buffers(model) if first else {}
        probed = dict(probe.state_dict()) if first and probe is not None else {}
        on_gpu = any(tensor.is_cuda for piece in owned for tensor in piece.tensors.values())
        if not self._views:
            self._lay_out(owned, on_gpu)
            self.buffers = TensorFile(specs_of(buffers), pinned=on_gpu) if first else None
            self.probe = TensorFile(specs_of(probed), pinned=on_gpu) if probed else None
            if first and is_frozen(model):
                self.frozen = {name: tensor.cpu().clone() for name, tensor in _frozen_buffers(model).items()}
        for piece in owned:
            for kind in KINDS:
                self._views[_key(kind, piece)].copy_(piece.tensors[kind], non_blocking=True)
        for file, tensors in ((self.buffers, buffers), (self.probe, probed)):
            for name, tensor in tensors.items():
                assert file is not None
                file.tensors[name].copy_(tensor, non_blocking=True)
        if on_gpu:
            torch.cuda.current_stream().synchronize()

    def _lay_out(self, owned: Sequence[Fragment], pinned: bool) -> None:
        for group in _groups(owned):
            specs: dict[str, Spec] = {
                _key(kind, piece): (torch.float32, (piece.length,)) for kind in KINDS for piece in group
            }
            self.parts.append(TensorFile(specs, pinned=pinned))
            self._views |= self.parts[-1].tensors


def _key(kind: str, piece: Fragment) -> str:
    return f"{kind}/{piece.name}/{piece.start}"


def _groups(pieces: Sequence[Fragment]) -> Iterator[list[Fragment]]:
    """Split the pieces into groups of about PART_BYTES."""
    group: list[Fragment] = []
    size = 0
    for piece in pieces:
        more = sum(piece.tensors[kind].nbytes for kind in KINDS)
        if group and size + more > PART_BYTES:
            yield group
            group, size = [], 0
        group.append(piece)
        size += more
    if group:
        yield group


def is_frozen(model: Method) -> bool:
    """Whether the model's encoder is pretrained and never changes."""
    return isinstance(getattr(model, "encoder", None), FrozenEncoder)


def saved_buffers(model: Method) -> dict[str, Tensor]:
    """Return the persistent buffers, without a frozen encoder's."""
    frozen = _frozen_buffers(model)
    return {name: tensor for name, tensor in _buffers(model).items() if name not in frozen}


def _frozen_buffers(model: Method) -> dict[str, Tensor]:
    return {n: t for n, t in _buffers(model).items() if n.startswith("encoder.")} if is_frozen(model) else {}


def _buffers(model: Method) -> dict[str, Tensor]:
    state = model.state_dict(keep_vars=True)
    return {name: tensor.detach() for name, tensor in state.items() if not isinstance(tensor, nn.Parameter)}
