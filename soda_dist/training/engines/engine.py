"""The interface between the loop and the owner of gradients, clipping, the update and sharded state.

An engine takes an update's micro-batches and returns the loss and the gradient norm. Its state is seen as fragments:
contiguous pieces of flattened float32 parameters, with the optimizer's moments and the EMA beside them. Every element
is owned by exactly one rank, so a checkpoint is the union of what the ranks own and can be read back by any engine on
any number of ranks.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from soda_dist.training.objective import Objective

KINDS = ("param", "exp_avg", "exp_avg_sq", "ema")


class MicroBatch(NamedTuple):
    """The arguments of `Objective.forward`, on the engine's device."""

    source: Tensor
    target: Tensor
    ok: Tensor
    index: Tensor  # type: ignore[assignment]  # tuple.index is not wanted here
    present: Tensor
    source_pose: Tensor
    target_pose: Tensor
    label: Tensor


@dataclass(frozen=True)
class Fragment:
    """Elements [start, start + length) of the flattened parameter `name`; tensors are views of the live state."""

    name: str
    start: int
    length: int
    tensors: dict[str, Tensor]
    """One flat float32 view for each of KINDS."""
    owned: bool = True
    """Whether this rank is the one to write it; state that every rank holds whole has one owner."""


@dataclass(frozen=True)
class StepResult:
    """The result of an update, which stays on the device until it is read."""

    loss: Tensor
    """Mean loss of this worker's micro-batches."""
    grad_norm: Tensor
    """Global gradient norm before clipping; an online probe has no part in it."""
    probe: Tensor | None = None
    """Of an online probe, float32 [3]: summed cross entropy, hits and labels of the global batch."""


class Engine(Protocol):
    """One update at a time over an `Objective`."""

    objective: Objective

    def step(self, micro_batches: Iterable[MicroBatch], lr: float) -> StepResult:
        """Gradients of the mean over the micro-batches and workers, clipped; an Adam update at `lr`; EMA; a probe's."""

    def fragments(self) -> Iterator[Fragment]:
        """This rank's share of the state, as live views."""

    @property
    def updates(self) -> int:
        """The optimizer's own count of updates (Adam's bias correction)."""

    def restored(self, updates: int) -> None:
        """Call on every rank after the fragments were overwritten."""

    def ema_weights(self) -> AbstractContextManager[dict[str, Tensor] | None]:
        """On every rank: inside, rank 0 has the EMA weights whole by name (CPU); the others have None."""


def probed(objective: Objective) -> Tensor | None:
    """The online probe's own update, which follows the model's; see `StepResult.probe`."""
    return None if objective.online_probe is None else objective.online_probe.update()


def adam_state(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """Adam's state of `parameter`, made as Adam makes it if no update has been done yet."""
    state = optimizer.state[parameter]
    if not state:
        state["step"] = torch.tensor(0.0)
        state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    return state
