"""Data sets: sources, shards, row order and view pairs. Imports neither Ray nor torch."""

from importlib import import_module
from types import ModuleType


def __getattr__(name: str) -> ModuleType:
    if name == "preparation":
        return import_module("soda_dist.data.preparation")
    raise AttributeError(f"module 'soda_dist.data' has no attribute {name!r}")
