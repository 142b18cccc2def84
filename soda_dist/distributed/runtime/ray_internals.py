"""Private names of Ray, in this file alone. Those of Ray Data are imported on use, since it takes seconds to load."""

import json
import time
from functools import cache
from typing import Any, Final

from ray._private.state import state
from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # type: ignore[attr-defined]
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


def release_placement_group(controller: str | None) -> None:
    """Free the machines that a killed controller of Ray Train had reserved; `controller` is its actor's ID.

    Its placement group is detached, and the actor that Ray Train leaves behind to remove it did not do so within
    minutes (measured): the next attempt's data tasks would wait for its CPUs forever.
    """
    for record in state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(record)
        if group.creator_actor_id.hex() == controller:
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
