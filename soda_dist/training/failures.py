"""Which errors of a training process another start may mend."""

from collections.abc import Iterator
from enum import Enum

import torch
import torch.distributed as dist

from soda_dist.errors import DivergedError, MachineError, UserError
from soda_dist.training.context import LeavingError


class Remedy(Enum):
    """What follows an error."""

    NOTHING = "nothing"
    """It would come again: end the run."""
    RETRY = "retry"
    """It may be a fault of the moment. The same one after the same step would come again."""
    PEER = "peer"
    """It follows from the loss of another process or node."""
    LEFT = "left"
    """No error: the process was asked to leave."""


BUGS = (
    TypeError, AttributeError, NameError, ImportError, LookupError, AssertionError, ArithmeticError,
    NotImplementedError,
)  # fmt: skip
"""Errors of a program, not of a machine."""
LONGEST = 500
"""Characters of an error that are shown."""
LOST = (
    "Connection closed by peer", "Connection reset by peer", "Connection refused", "Broken pipe", "Socket closed",
    "Timed out waiting", "timed out", "NCCL communicator was aborted", "remote process exited",
)  # fmt: skip
"""In messages of collectives whose peer is gone."""
LOST_BY_RAY = {
    "RayActorError", "ActorDiedError", "ActorUnavailableError", "WorkerCrashedError", "NodeDiedError",
    "ObjectLostError", "OwnerDiedError", "ObjectReconstructionFailedError", "ObjectFetchTimedOutError",
    "LocalRayletDiedError", "OutOfMemoryError",
}  # fmt: skip
"""Names of Ray's errors for what was lost with a process or a node; torch's error of the last name comes first."""


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Iterate over an error and what caused it, through the wrappers of Ray too."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = getattr(error, "cause", None) or error.__cause__ or error.__context__


def judged(error: BaseException) -> tuple[Remedy, Exception]:
    """Return what follows an error, and the error to show: without causes, and safe to send to another process."""
    links = list(chain(error))
    for link in links:
        match link:
            case LeavingError():
                return Remedy.LEFT, LeavingError(str(link))
            case UserError():
                kind = DivergedError if isinstance(link, DivergedError) else UserError
                return Remedy.NOTHING, kind(link.field, link.got, link.allowed, link.remedy)
            case MachineError():
                return Remedy.NOTHING, MachineError(str(link))
            case torch.OutOfMemoryError():
                got, allowed = "a step that does not fit", "the GPU's memory"
                remedy = "lower train.micro_batch; raise scale.workers or scale.zero_stage"
                return Remedy.NOTHING, UserError("GPU memory", got, allowed, remedy)
    origin = _origin(error)
    shown = MachineError(" ".join(f"{type(origin).__name__}: {origin}".split())[:LONGEST])
    if any(_lost(link) for link in links):
        return Remedy.PEER, shown
    return Remedy.NOTHING if isinstance(origin, BUGS) else Remedy.RETRY, shown


def _origin(error: BaseException) -> BaseException:
    """Return what an error was raised from, but not what was being handled meanwhile."""
    while (cause := getattr(error, "cause", None) or error.__cause__) is not None:
        error = cause
    return error


def _lost(error: BaseException) -> bool:
    collective = isinstance(error, dist.DistError) or type(error) is RuntimeError
    return type(error).__name__ in LOST_BY_RAY or (collective and any(sign in str(error) for sign in LOST))
