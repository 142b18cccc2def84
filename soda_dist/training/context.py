"""The training loop's view of its process: rank, device, collectives."""

from enum import IntEnum
from typing import Any, Protocol

import torch

from soda_dist.errors import UserError


class Ask(IntEnum):
    """What is asked of training processes from outside, which all do after the same step; the largest counts."""

    NOTHING = 0
    LEAVE = 1
    """Save a checkpoint and end, to be started again elsewhere."""
    STOP = 2
    """Save a checkpoint and end the run here; a later start resumes it."""


class LeavingError(Exception):
    """A training process that was asked to leave has saved its checkpoint."""


class WorkerContext(Protocol):
    """One of `world` training processes."""

    rank: int
    world: int
    device: torch.device

    def say(self, line: str) -> None:
        """Show a line to the user; ranks other than 0 are ignored."""

    def barrier(self) -> None:
        """Wait for every process."""

    def gather(self, value: Any) -> list[Any]:
        """Return every process's small `value`, ordered by rank, on every process."""

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over the processes."""

    def asked(self, step: int) -> Ask:
        """Return what to do now that `step` is finished, the same on every process; call after every step."""


class LocalContext:
    """A single process, such as a notebook."""

    rank = 0
    world = 1

    def __init__(self, device: str | torch.device = "cpu", say: Any = None) -> None:
        self.device = torch.device(device)
        self._say = say

    def say(self, line: str) -> None:
        if self._say is not None:
            self._say(line)

    def barrier(self) -> None:
        return None

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def asked(self, step: int) -> Ask:
        return Ask.NOTHING


def chosen_device(device: str | torch.device | None) -> torch.device:
    """Return the device; None = `cuda` where it is available, else `cpu`.

    Raises:
        UserError: no such device on this machine.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    allowed = ["cpu", *(["cuda"] if gpus else []), *gpus]
    if str(device) not in allowed:
        raise UserError("device", device, ", ".join(allowed), "name a device of this machine")
    return torch.device(device)
