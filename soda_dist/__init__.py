"""SODA (bottleneck diffusion models for representation learning, 2023), trained and evaluated on clusters.

import soda_dist
model = soda_dist.load("RUN")
soda_dist.evaluation.evaluate("RUN", "DATA", "probe,knn")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from soda_dist.inference import embed, load
    from soda_dist.training.local_run import pretrain

__version__ = "0.1.0"
__all__ = ["embed", "load", "pretrain"]
ROOMS = ("data", "diffusion", "evaluation", "inference", "metrics", "models")
"""Packages for use in a notebook, imported on first access."""
HOMES = {"embed": "inference", "load": "inference", "pretrain": "training.local_run"}
"""The module of each function, imported on first access."""


def __getattr__(name: str) -> Any:
    if name in ROOMS:
        return import_module(f"soda_dist.{name}")
    if name in HOMES:
        return getattr(import_module(f"soda_dist.{HOMES[name]}"), name)
    raise AttributeError(f"module 'soda_dist' has no attribute {name!r}")
