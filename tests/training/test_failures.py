"""What follows an error of a training process."""

import pytest
import torch
import torch.distributed as dist

from soda_dist.errors import DivergedError, MachineError, UserError
from soda_dist.training.context import LeavingError
from soda_dist.training.failures import Remedy, judged


class RayActorError(Exception):
    """Of Ray's name, as in a process that has not imported Ray."""


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def meanwhile(error: Exception, handled: Exception) -> Exception:
    error.__context__ = handled
    return error


MISTAKE = UserError("train.max_unreadable", "9", "1", "repair")
DIVERGED = DivergedError("loss", "nan", "finite", "lower optim.lr")


@pytest.mark.parametrize(
    ("error", "remedy", "shown"),
    [
        (MISTAKE, Remedy.NOTHING, str(MISTAKE)),
        (caused(RuntimeError("wrapped"), MISTAKE), Remedy.NOTHING, str(MISTAKE)),
        (DIVERGED, Remedy.NOTHING, str(DIVERGED)),
        (MachineError("no"), Remedy.NOTHING, "no"),
        (LeavingError("saved step 3"), Remedy.LEFT, "saved step 3"),
        (KeyError("x"), Remedy.NOTHING, "KeyError: 'x'"),
        (caused(RuntimeError("task"), TypeError("two\nlines")), Remedy.NOTHING, "TypeError: two lines"),
        (RuntimeError("CUDA error: an illegal memory access"), Remedy.RETRY, "RuntimeError: CUDA error: an illegal"),
        (meanwhile(OSError("disk"), KeyError("cache")), Remedy.RETRY, "OSError: disk"),
        (RuntimeError("[gloo] Connection closed by peer [::1]:1"), Remedy.PEER, "RuntimeError: [gloo]"),
        (dist.DistBackendError("NCCL communicator was aborted on rank 0"), Remedy.PEER, "DistBackendError"),
        (caused(RuntimeError("get"), RayActorError("gone")), Remedy.PEER, "RayActorError: gone"),
        (ValueError("Connection closed by peer"), Remedy.RETRY, "ValueError"),
    ],
    ids=lambda value: None if isinstance(value, Remedy) else str(value)[:30],
)
def test_an_error_is_judged_by_its_origin(error: Exception, remedy: Remedy, shown: str) -> None:
    found, sent = judged(error)
    assert found is remedy
    assert str(sent).startswith(shown)
    assert isinstance(sent, DivergedError) is (error is DIVERGED)
    assert sent.__cause__ is None and sent.__context__ is None


def test_a_gpu_that_is_too_small_is_the_users_to_mend() -> None:
    found, sent = judged(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert found is Remedy.NOTHING and isinstance(sent, UserError) and "train.micro_batch" in sent.remedy
