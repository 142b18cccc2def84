"""A job for the autoscaler test: two Ray Train workers meet, and the driver prints where it and they ran."""

import tempfile

import ray
import torch
from ray import train
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer


def work() -> list[str]:
    """The ids of the nodes that the workers run on, as rank 0 learns them from all."""
    here = ray.get_runtime_context().get_node_id()
    nodes = [""] * train.get_context().get_world_size()
    torch.distributed.all_gather_object(nodes, here)
    return nodes


def main() -> None:
    ray.init(log_to_driver=False)
    with tempfile.TemporaryDirectory() as storage:
        trainer = TorchTrainer(
            work,
            scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(storage_path=storage),
        )
        nodes = trainer.fit().return_value
    print("driver on", ray.get_runtime_context().get_node_id())
    for rank, node in enumerate(nodes):
        print("worker", rank, "on", node)


if __name__ == "__main__":
    main()
