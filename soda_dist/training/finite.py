"""State that is not finite, which no checkpoint may hold."""

from collections.abc import Iterator

import torch
from torch import Tensor

from soda_dist.errors import DivergedError
from soda_dist.training.context import WorkerContext
from soda_dist.training.engines.engine import Engine


class UnstableError(DivergedError):
    """Training that has to go back to a checkpoint of step `since` or before."""

    def __init__(self, got: str, since: int) -> None:
        super().__init__("training", got, "finite values", "lower optim.lr, which a resume may change")
        self.since = since

    def __reduce__(self) -> tuple[type, tuple[object, int]]:
        return type(self), (self.got, self.since)


def refuse_not_finite(engine: Engine, context: WorkerContext, step: int) -> None:
    """Raise `UnstableError` on every rank if a value of the state is not finite on any; call on every rank.

    One look at parameters, moments, EMA, buffers and online probe, on their device.
    """
    state = dict(_state(engine))
    finite = torch.stack([torch.isfinite(tensor).all() for tensor in state.values()]).tolist() if state else []
    own = next((name for name, fine in zip(state, finite, strict=True) if not fine), None)
    found = [name for name in context.gather(own) if name is not None]
    if found:
        raise UnstableError(f"{found[0]} not finite at step {step}, which is not checkpointed", step - 1)


def _state(engine: Engine) -> Iterator[tuple[str, Tensor]]:
    for piece in engine.fragments():
        if piece.owned:
            yield from ((f"{kind} of {piece.name} from {piece.start}", part) for kind, part in piece.tensors.items())
    for name, buffer in engine.objective.named_buffers():
        if buffer.is_floating_point():
            yield f"buffer {name}", buffer
