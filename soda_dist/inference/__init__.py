"""Trained models in Python: images to latents, latents to images, folders to files of embeddings. No Ray.

from soda_dist.inference import embed, load
load("RUN").encode("photo.jpg")
embed("RUN", "FOLDER", "embeddings.parquet")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from soda_dist.data.views.poses import Cameras
    from soda_dist.inference.embedding import embed
    from soda_dist.inference.loading import load
    from soda_dist.inference.model import Model

HOMES = {
    "Cameras": "soda_dist.data.views.poses",
    "Model": "soda_dist.inference.model",
    "embed": "soda_dist.inference.embedding",
    "load": "soda_dist.inference.loading",
}
"""The module of each name, imported on first access."""
__all__ = ["Cameras", "Model", "embed", "load"]


def __getattr__(name: str) -> Any:
    if name in HOMES:
        return getattr(import_module(HOMES[name]), name)
    raise AttributeError(f"module 'soda_dist.inference' has no attribute {name!r}")
