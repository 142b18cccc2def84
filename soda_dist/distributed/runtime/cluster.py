"""Join a running Ray cluster, or start a local one."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from soda_dist.errors import UserError


@contextmanager
def ray_session(cpus: float) -> Iterator[None]:
    """Connect to Ray: the job's cluster or that of RAY_ADDRESS, else a local one of at least `cpus` logical CPUs.

    Raises:
        UserError: RAY_ADDRESS names a cluster that does not answer.
    """
    _quiet_environment()
    import ray

    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    try:
        if address and address != "local":
            ray.init(address=address, **common)
        else:
            # No dashboard: it would hold the port of a head on this machine.
            logical = max(os.cpu_count() or 1, int(-(-cpus // 1)))
            ray.init(address="local", num_cpus=logical, include_dashboard=False, **common)
    except ConnectionError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            "RAY_ADDRESS", address, "a running Ray cluster", f"start it or unset the variable ({reason})"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


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
