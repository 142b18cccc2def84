"""MPI3D's archives, by numpy: one array `images` of every combination of the factors, in row-major order."""

import io

import numpy as np

from soda_dist.data.storage.folder import Folder

FACTORS = {"object_color": ("white", "green", "red"), "object_shape": ("cone", "cube"), "vertical_axis": tuple("01234")}
"""Fewer than published."""
COUNT = 30


def image(row: int) -> np.ndarray:
    return np.random.default_rng([3, row]).integers(0, 256, (8, 6, 3), np.uint8)


def images(count: int = COUNT) -> np.ndarray:
    return np.stack([image(row) for row in range(count)])


def archive(*, deflated: bool = False, **arrays: np.ndarray) -> bytes:
    sink = io.BytesIO()
    (np.savez_compressed if deflated else np.savez)(sink, **arrays)
    return sink.getvalue()


def write(folder: Folder) -> None:
    """mpi3d_real.npz, as published: not compressed."""
    folder.write("mpi3d_real.npz", archive(images=images()))
