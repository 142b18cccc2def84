"""Interface between the loop and the engine, which owns gradients, clipping, the update and sharded state.

State is exposed as fragments: contiguous slices of flattened float32 parameters with their Adam moments and EMA. Every
element has one owning rank, so a checkpoint is the union of owned fragments, which any engine on any ranks can read.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Size, Tensor

from soda_dist.models.batch_norm import update_running_statistics
from soda_dist.training.objective import Objective

KINDS = ("param", "exp_avg", "exp_avg_sq", "ema")


class MicroBatch(NamedTuple):
    """Arguments of `Objective.forward`, on the engine's device."""

    source: Tensor
    target: Tensor
    ok: Tensor
    index: Tensor  # type: ignore[assignment]  # shadows tuple.index
    present: Tensor
    source_pose: Tensor
    target_pose: Tensor
    label: Tensor


@dataclass(frozen=True)
class Fragment:
    """Elements [start, start + length) of the flattened parameter `name`."""

    name: str
    start: int
    length: int
    tensors: dict[str, Tensor]
    """A flat float32 view of the live state for each of KINDS."""
    owned: bool = True
    """Whether this rank writes it; replicated state has one owner."""


@dataclass(frozen=True)
class StepResult:
    """Result of an update, on the device."""

    loss: Tensor
    """Mean loss of the global batch; the same on all workers, as the other fields."""
    grad_norm: Tensor
    """Global gradient norm before clipping, without the online probe."""
    finite: Tensor
    """bool; False = the loss or the gradient was not finite, so the step was skipped: nothing has changed."""
    probe: Tensor | None = None
    """Online probe, float32 [3]: summed cross entropy, hits and label count of the global batch."""


class Engine(Protocol):
    """Trains an `Objective`."""

    objective: Objective
    shapes: dict[str, Size]
    """Of the whole parameters, by name."""

    def step(self, micro_batches: Iterable[MicroBatch], lr: float) -> StepResult:
        """Average gradients over micro-batches and workers, clip, update Adam at `lr` and the EMA, call `finished`.

        A step that is not finite changes nothing but the position in the data. The host never waits for the device.
        """

    def fragments(self) -> Iterator[Fragment]:
        """Iterate over this rank's share of the state."""

    @property
    def updates(self) -> int:
        """Number of updates that Adam has counted, for its bias correction."""

    def restored(self, updates: int) -> None:
        """Apply overwritten fragments and set the number of updates; call on every rank."""

    def ema_weights(self) -> AbstractContextManager[dict[str, Tensor] | None]:
        """Yield the full EMA weights by name on the CPU on rank 0, None on the others; enter on every rank."""


def finished(objective: Objective, finite: Tensor) -> Tensor | None:
    """Update running statistics and the online probe after the model, where `finite`; return `StepResult.probe`."""
    update_running_statistics(objective.model, objective.workers.sum, finite)
    return None if objective.online_probe is None else objective.online_probe.update(finite)
