"""3D Shapes' HDF5 file, by h5py: images and the values of their factors, in row-major order of the factors."""

import io
import itertools

import h5py
import numpy as np

from soda_dist.data.storage.folder import Folder

VALUES = {
    "floor_hue": np.linspace(0, 0.9, 3),
    "wall_hue": np.array([0.1, 0.30000000000000004]),
    "object_hue": np.array([0.5]),
    "scale": np.linspace(0.75, 1.25, 8)[:2],
    "shape": np.arange(2.0),
    "orientation": np.linspace(-30, 30, 15)[:2],
}
"""Fewer than published."""
LABELS = np.array([*itertools.product(*VALUES.values())])
COUNT = len(LABELS)
assert COUNT == 48


def image(row: int) -> np.ndarray:
    return np.random.default_rng([4, row]).integers(0, 256, (8, 8, 3), np.uint8)


def images() -> np.ndarray:
    return np.stack([image(row) for row in range(COUNT)])


def file(labels: np.ndarray = LABELS, **options: object) -> bytes:
    """Images with these options of h5py, and labels."""
    sink = io.BytesIO()
    with h5py.File(sink, "w") as made:
        made.create_dataset("images", data=images(), **options)
        made.create_dataset("labels", data=labels)
    return sink.getvalue()


def write(folder: Folder) -> None:
    """3dshapes.h5, chunked over many rows and compressed, as published."""
    folder.write("3dshapes.h5", file(chunks=(20, 4, 4, 1), compression="gzip"))
