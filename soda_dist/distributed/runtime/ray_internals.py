"""Private names of Ray, in this file alone."""

import json
import time
from typing import Any

from ray._private.state import state
from ray.data._internal.execution.execution_callback import ExecutionCallback


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


def release_placement_group(controller: str | None) -> None:
    """Free the machines that a killed controller had reserved.

    Its placement group is detached, and the actor that Ray Train leaves to remove it did not (measured for minutes):
    the next attempt's data tasks would wait for its CPUs for ever.
    """
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # type: ignore[attr-defined]
    from ray.util.placement_group import PlacementGroup, PlacementGroupID, remove_placement_group

    for record in state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(record)
        if group.creator_actor_id.hex() == controller:
            remove_placement_group(PlacementGroup(PlacementGroupID(group.placement_group_id)))


REST_S = 0.02


class RestingLoop(ExecutionCallback):
    """A pause after each turn of Ray Data's scheduling loop, which runs in the training process.

    While training is the slower side, a finished block waits to be fetched, `ray.wait` answers at once, and the loop
    would turn without end: it took most of a core and the interpreter's lock from the training thread (measured on two
    cores: 20 pairs/s with it, 46 without). A block is worth seconds of work, so the pause delays nothing.
    """

    def on_execution_step(self, executor: Any) -> None:
        time.sleep(REST_S)


def hold_statistics_here() -> None:
    """Make Ray Data's detached statistics actor on the caller's node, if the cluster has none yet.

    Ray Data makes it where a dataset first runs and never ends it: on a worker node it would keep the autoscaler from
    ever letting that node go (measured). The function is private to Ray, whose version is pinned.
    """
    from ray.data._internal.stats import get_or_create_stats_actor

    get_or_create_stats_actor()


def free_cpus() -> list[int]:
    """Of each node: a task that asked for CPUs that an actor holds would wait for ever."""
    return [int(node.get("CPU", 0)) for node in state.available_resources_per_node().values()]
