"""SODA (bottleneck diffusion models for representation learning, 2023), trained and evaluated on clusters.

import soda_dist
soda_dist.evaluation.evaluate("RUN", "DATA", "probe,knn")
"""

from importlib import import_module
from types import ModuleType

__version__ = "0.1.0"
ROOMS = ("data", "diffusion", "evaluation", "metrics", "models")
"""Packages for use in a notebook, imported on first access."""


def __getattr__(name: str) -> ModuleType:
    if name in ROOMS:
        return import_module(f"soda_dist.{name}")
    raise AttributeError(f"module 'soda_dist' has no attribute {name!r}")
