"""Join a running Ray cluster, or start a local one."""

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from soda_dist.errors import MachineError, UserError
from soda_dist.parallel.progress import Say, silent

SOCKET_BYTES = 107
"""Longest path of a Unix socket on Linux."""
SESSION_BYTES = 70
"""Length of what Ray appends to the scratch folder: /ray/session_DATE_TIME_PID/sockets/plasma_store.N."""
SHORT_SCRATCH = "/tmp"


@contextmanager
def ray_session(cpus: float, say: Say = silent) -> Iterator[None]:
    """Connect to Ray: the job's cluster or that of RAY_ADDRESS, else a local one of at least `cpus` logical CPUs.

    Args:
        say: shows which, before it is done.

    Raises:
        UserError: RAY_ADDRESS names no cluster that this process may join; within 20 s.
        MachineError: a local cluster did not start in time, twice.
    """
    _quiet_environment()
    import ray

    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    with ExitStack() as stack:
        if address and address != "local":
            say(f"connecting to Ray at {address}")
            _join(address, common)
        else:
            # No dashboard: it would hold the port of a head on this machine.
            logical = max(os.cpu_count() or 1, int(-(-cpus // 1)))
            stack.enter_context(_token())
            say(f"starting Ray on this machine, with {logical} logical CPUs")
            _start({"num_cpus": logical, "include_dashboard": False, **common}, say)
        stack.callback(ray.shutdown)
        yield


def _join(address: str, options: dict[str, Any]) -> None:
    import ray

    from soda_dist.distributed.runtime.reach import check_head

    head = check_head(address)
    try:
        ray.init(address=head, **options)
    except ConnectionError as error:
        reason = str(error).splitlines()[0]
        remedy = f"start it or unset the variable ({reason})"
        raise UserError("RAY_ADDRESS", address, "a running Ray cluster", remedy) from None


def _start(options: dict[str, Any], say: Say = silent) -> None:
    """Start a local cluster; a busy machine may need a second try."""
    import ray

    from soda_dist.distributed.runtime.ray_internals import did_not_start

    for last in (False, True):
        try:
            ray.init(address="local", **{**options, **short_scratch()})
        except Exception as error:
            ray.shutdown()
            if not did_not_start(error):
                raise
            if last:
                raise MachineError("Ray did not start in time, twice: the machine is too busy; rerun later") from None
            say("Ray did not start in time; trying once more")
        else:
            return


def short_scratch() -> dict[str, Any]:
    """Return the option of `ray.init` that moves Ray's folder where its sockets' paths are short enough, if need be.

    Raises:
        UserError: the scratch folder's path is too long, and /tmp is not writable.
    """
    scratch = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or SHORT_SCRATCH
    length, most = len(os.fsencode(scratch)), SOCKET_BYTES - SESSION_BYTES
    if length <= most:
        return {}
    if not os.access(SHORT_SCRATCH, os.W_OK):
        got = f"a path of {length} bytes, and {SHORT_SCRATCH} is not writable"
        raise UserError("TMPDIR", got, f"at most {most} bytes", "set RAY_TMPDIR to a short path")
    return {"_temp_dir": f"{SHORT_SCRATCH}/ray"}


@contextmanager
def _token() -> Iterator[None]:
    """Give a local cluster a token of its own where Ray could not write one to the home folder."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH") or _holds_token():
        yield
        return
    from soda_dist.distributed.runtime.ray_internals import new_token

    place, path = tempfile.mkstemp(prefix="soda-ray-token-")  # readable by its owner only
    with os.fdopen(place, "w") as file:
        file.write(new_token())
    os.environ["RAY_AUTH_TOKEN_PATH"] = path
    try:
        yield
    finally:
        del os.environ["RAY_AUTH_TOKEN_PATH"]
        Path(path).unlink(missing_ok=True)


def _holds_token() -> bool:
    """Whether the home folder has Ray's token, or takes one."""
    home = Path(os.path.expanduser("~")) / ".ray"  # noqa: PTH111 - `Path.home` fails where no home is known
    try:
        home.mkdir(parents=True, exist_ok=True)
        return (home / "auth_token").exists() or os.access(home, os.W_OK)
    except OSError:
        return False


def _quiet_environment() -> None:
    """Set what Ray reads at import, to keep its own messages out of the user's output."""
    for name, value in {
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }.items():
        os.environ.setdefault(name, value)
    for name in ("ray", "ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
