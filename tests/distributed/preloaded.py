"""Imports of the server process that `spawned` forks from; DeepSpeed chooses its accelerator at import."""

import os

os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed.ops

import soda_dist.models.backbones  # timm
import soda_dist.training.build
import soda_dist.training.checkpoint
import soda_dist.training.to_device

__all__ = ["deepspeed", "soda_dist"]
