"""Joining the cluster that is there, or starting a local one; and what it must be able to give."""

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from soda_dist.config.schema import RunConfig
from soda_dist.errors import UserError

Say = Callable[[str], None]


@contextmanager
def ray_session(cpus: float) -> Iterator[None]:
    """A connection to Ray: the job's cluster or that of RAY_ADDRESS, else a local one of at least `cpus` logical CPUs.

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
            # No dashboard: a local run has no use for it, and it would hold the port that a head on this machine wants.
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
    """Settings that Ray reads at import: they keep its own messages out of the user's output."""
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


def training_resources(config: RunConfig) -> dict[str, float]:
    """Logical resources of a run: workers and the data tasks beside them."""
    scale = config.scale
    return {
        "CPU": scale.workers * (scale.cpus_per_worker + scale.data_cpus_per_worker),
        "GPU": scale.workers * scale.gpus_per_worker,
    }


def evaluation_resources(config: RunConfig) -> dict[str, float]:
    """Of one actor of evaluation: a training worker's share of a GPU where there are any or may be, else a CPU."""
    import ray

    gpus = config.scale.gpus_per_worker
    if gpus > 0 and (ray.cluster_resources().get("GPU", 0) > 0 or autoscaler_active()):
        return {"GPU": gpus}
    return {"CPU": 1}


def check_resources(needed: dict[str, float], say: Say, *, setting: str = "scale.workers") -> None:
    """Refuse what the cluster cannot give, unless an autoscaler may add nodes: then say what is waited for.

    `setting`: the field that a smaller number of would need less.
    """
    import ray

    have = ray.cluster_resources()
    short = {name: count for name, count in needed.items() if count > have.get(name, 0.0)}
    if not short:
        return
    asked = ", ".join(f"{count:g} {name}" for name, count in short.items())
    there = ", ".join(f"{have.get(name, 0.0):g} {name}" for name in short)
    if autoscaler_active():
        say(f"waiting for the autoscaler: the run needs {asked}, the cluster has {there} now")
        return
    field = setting if setting.startswith("evaluation") else "scale"
    raise UserError(
        field, f"a run that needs {asked}", f"at most {there}", f"lower {setting} or add nodes to the cluster"
    )


def autoscaler_active() -> bool:
    """Whether the head runs an autoscaler that can add nodes.

    Version 2 (KubeRay) publishes its cluster configuration. Version 1 publishes a report whose nodes are counted by
    node type; without an autoscaler the report is there too, but counts each node under `node_ID` (measured).
    """
    from ray._private.state import state
    from ray.experimental.internal_kv import _internal_kv_get

    if state.get_max_resources_from_cluster_config() is not None:
        return True
    status = _internal_kv_get(b"__autoscaling_status")
    if not status:
        return False
    nodes = json.loads(status).get("autoscaler_report", {}).get("active_nodes", {})
    return any(not name.startswith("node_") for name in nodes)
