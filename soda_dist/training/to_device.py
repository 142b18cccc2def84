"""Transfer of micro-batches to the training device."""

import torch

from soda_dist.data.pairs import Pairs
from soda_dist.training.device_randaugment import distort
from soda_dist.training.engines.engine import MicroBatch


def to_device(pairs: Pairs, device: torch.device) -> MicroBatch:
    """Copy a micro-batch to `device`, except `index`, and apply RandAugment if it was left to the device."""
    tensors = {name: torch.from_numpy(getattr(pairs, name)) for name in MicroBatch._fields}
    moved = {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items() if name != "index"}
    if pairs.target_layers.size:
        if device.type == "cpu":  # `to` copied nothing
            moved["source"], moved["target"] = moved["source"].clone(), moved["target"].clone()
        distort(moved["source"].flatten(0, 1), pairs.source_layers.reshape(-1, *pairs.source_layers.shape[2:]))
        distort(moved["target"], pairs.target_layers)
    return MicroBatch(**moved, index=tensors["index"])
