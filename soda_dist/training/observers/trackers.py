"""The observers that `train.trackers` names."""

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec

from soda_dist.data.storage.folder import Folder
from soda_dist.errors import UserError
from soda_dist.parallel.progress import Say
from soda_dist.training.observers.mlflow import Mlflow
from soda_dist.training.observers.observer import Guarded, Observer
from soda_dist.training.observers.tensorboard import TensorBoard
from soda_dist.training.observers.wandb import Wandb

EXTRAS = {"wandb": "wandb", "mlflow": "mlflow"}
"""Trackers whose packages are optional, and the extras of this package that install them."""


def check_trackers(names: Sequence[str]) -> None:
    """Raise a `UserError` for a tracker whose package is not installed; imports none of them."""
    for name in names:
        if find_spec(name) is None:
            wanted = f"soda_dist[{EXTRAS[name]}]" if name in EXTRAS else name
            got, remedy = f"{name}, whose package is not installed", f"pip install '{wanted}', or leave it out"
            raise UserError("train.trackers", got, "installed trackers", remedy)


def open_observers(names: Sequence[str], run: Folder, say: Say) -> Guarded:
    """Return these observers of a run, whose folder has its configuration; nothing is imported before their start."""
    makers: dict[str, Callable[[], Observer]] = {
        "tensorboard": partial(TensorBoard, run),
        "wandb": partial(Wandb, run),
        "mlflow": partial(Mlflow, run),
    }
    return Guarded({name: makers[name] for name in names}, say)
