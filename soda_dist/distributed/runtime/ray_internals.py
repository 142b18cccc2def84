"""Private names of Ray, in this file alone. Those of Ray Data are imported on use, since it takes seconds to load."""

import json
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Final

import ray
from ray._private.authentication.authentication_token_generator import generate_new_authentication_token
from ray._private.grpc_utils import init_grpc_channel
from ray._private.services import canonicalize_bootstrap_address
from ray._private.state import state
from ray._private.utils import compute_version_info
from ray._raylet import (  # type: ignore[attr-defined]
    AuthenticationMode,
    AuthenticationTokenLoader,
    get_authentication_mode,
)
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc
from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # type: ignore[attr-defined]
from ray.exceptions import AuthenticationError
from ray.experimental.internal_kv import _internal_kv_get
from ray.util.placement_group import PlacementGroup, PlacementGroupID, remove_placement_group

CHECKED_AGAINST: Final = "2.60"
"""The Ray version that these names were checked against."""


def autoscaler_active() -> bool:
    """Whether the head runs an autoscaler that can add nodes.

    Version 2 (KubeRay) publishes its cluster configuration. Version 1 publishes a report that counts nodes by node
    type; without an autoscaler the report exists too, but counts each node under `node_ID` (measured).
    """
    if state.get_max_resources_from_cluster_config() is not None:
        return True
    status = _internal_kv_get(b"__autoscaling_status")
    if not status:
        return False
    nodes = json.loads(status).get("autoscaler_report", {}).get("active_nodes", {})
    return any(not name.startswith("node_") for name in nodes)


def draining_nodes() -> set[str]:
    """Return the IDs of nodes that are about to be taken away."""
    return set(state.get_draining_nodes())


def run_callback(report: Callable[[str, Any], None], in_workers: Callable[[], None]) -> Any:
    """Return a callback of Ray Train that reports the controller's actor, and groups that are placed or lost.

    Args:
        report: called in the controller's process with `controller` and its actor, `placed` and None, or `restarting`
            and the error of the lost group.
        in_workers: called in the main thread of each new training process.
    """
    from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
    from ray.train.v2._internal.execution.controller.state import ReschedulingState, RestartingState

    class Reports(ControllerCallback, WorkerGroupCallback):
        def after_controller_start(self, train_run_context: Any) -> None:
            report("controller", ray.get_runtime_context().current_actor)

        def after_worker_group_start(self, worker_group: Any) -> None:
            worker_group.execute(in_workers)
            report("placed", None)

        def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
            if isinstance(current_state, RestartingState | ReschedulingState):
                report("restarting", current_state.training_failed_error)

    return Reports()


def _groups(controller: Any) -> Iterator[PlacementGroupTableData]:
    if controller is None:
        return
    for record in state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(record)
        if group.creator_actor_id.hex() == controller._actor_id.hex():
            yield group


def holds_machines(controller: Any) -> bool:
    """Whether this controller of Ray Train has the machines that it asked for."""
    return any(group.state == PlacementGroupTableData.CREATED for group in _groups(controller))


def release_placement_group(controller: Any) -> None:
    """Free the machines that a killed controller of Ray Train had reserved; None has none.

    Its placement group is detached, and the actor that Ray Train leaves behind to remove it did not do so within
    minutes (measured): the next attempt's data tasks would wait for its CPUs forever.
    """
    for group in _groups(controller):
        remove_placement_group(PlacementGroup(PlacementGroupID(group.placement_group_id)))


REST_S: Final = 0.02


@cache
def resting_loop() -> type:
    """A callback of Ray Data that pauses after each turn of its scheduling loop, which runs in the training process.

    While training is the slower side, a finished block waits to be fetched, `ray.wait` returns at once, and the loop
    would spin: it took most of a core and the interpreter's lock from the training thread (measured on two cores:
    20 pairs/s, 46 with the pause). A block is worth seconds of work, so the pause delays nothing.
    """
    from ray.data._internal.execution.execution_callback import ExecutionCallback

    class RestingLoop(ExecutionCallback):
        def on_execution_step(self, executor: Any) -> None:
            time.sleep(REST_S)

    return RestingLoop


def hold_statistics_here() -> None:
    """Create Ray Data's detached statistics actor on the caller's node, if the cluster has none yet.

    Ray Data creates it where a dataset first runs and never ends it: on a worker node it would keep the autoscaler
    from ever removing that node (measured).
    """
    from ray.data._internal.stats import get_or_create_stats_actor

    get_or_create_stats_actor()


def free_cpus() -> list[int]:
    """Free CPUs of each node: a task that needs more than a node has free would wait forever."""
    return [int(node.get("CPU", 0)) for node in state.available_resources_per_node().values()]


def actor_is_alive(actor: Any) -> bool:
    """Whether an actor's process runs, as opposed to one that waits for a machine or is being restarted."""
    return state.actor_table(actor._actor_id.hex()).get("State") == "ALIVE"


NOT_STARTED: Final = ("timed out during startup", "Failed to start GCS", "may not have started", "Timed out")
"""In messages of `ray.init` about processes of a new cluster that were not there in time."""


def did_not_start(error: Exception) -> bool:
    """Whether `ray.init` failed because the processes of a new cluster took too long."""
    return any(sign in str(error) for sign in NOT_STARTED)


def new_token() -> str:
    """Return a random token for a new cluster."""
    return generate_new_authentication_token()


def running_cluster() -> str | None:
    """Return HOST:PORT of the cluster that runs on this machine, if any."""
    try:
        return canonicalize_bootstrap_address("auto")
    except ConnectionError:
        return None


class NoTokenError(Exception):
    """Ray's settings ask for a token and name none that can be read."""


def token_header() -> tuple[tuple[str, str], ...]:
    """Return this process's token as metadata of a gRPC call; empty without RAY_AUTH_MODE=token.

    Raises:
        NoTokenError: as its name says.
    """
    if get_authentication_mode() != AuthenticationMode.TOKEN:
        return ()
    loader = AuthenticationTokenLoader.instance()
    loader.reset_cache()
    try:
        if not loader.has_token():
            raise NoTokenError("none with RAY_AUTH_MODE=token")
        return tuple((name.lower(), value) for name, value in loader.get_token_for_http_header().items())
    except AuthenticationError as error:
        raise NoTokenError(str(error).partition(". ")[0]) from None


def own_versions() -> dict[str, str]:
    """Return the versions that all processes of a cluster share, by name."""
    return dict(zip(("Ray", "Python"), compute_version_info(), strict=True))


def head_versions(address: str, header: tuple[tuple[str, str], ...], seconds: float) -> tuple[str, str]:
    """Ask a head for its versions of Ray and Python, in one call without Ray's client, which retries and aborts.

    Raises:
        grpc.RpcError: no answer in time, a server that is not a head, or a refused token.
    """
    key = gcs_service_pb2.InternalKVGetRequest(  # type: ignore[attr-defined]
        key=b"CLUSTER_METADATA", namespace=b"cluster"
    )
    with init_grpc_channel(address) as channel:
        stub = gcs_service_pb2_grpc.InternalKVGcsServiceStub(channel)
        answer = stub.InternalKVGet(key, timeout=seconds, wait_for_ready=True, metadata=header)
    if not answer.value:  # a head that has only just started has not written it yet; Ray compares once more itself
        ray_version, python_version = own_versions().values()
        return ray_version, python_version
    found = json.loads(answer.value)
    return found["ray_version"], found["python_version"]
