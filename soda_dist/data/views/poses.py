"""Poses of views: the frame in the image, or the camera (section 3.3, appendix C).

A frame is (y0, x0, y1, x1), the view's top left and bottom right corners in its image, which spans [-1, 1] in both
directions for any aspect; a mirrored view has x0 > x1.

A camera is the first three rows of camera_to_world, [3, 4] row-major, then intrinsics, [3, 3] row-major, which map
camera coordinates (x right, y down, z forward) to multiples of (u, v, 1), u and v in [0, 1] over the view's width and
height. Data sets store intrinsics in pixels of the stored image, where the pixel in row i and column j covers
[j, j + 1) x [i, i + 1), so that its centre is (j + 1/2, i + 1/2).

Our reading: poses ignore RandAugment's rotations, shears and translations, which count as distortions of the view.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from soda_dist.data.views.addressed import Ints
from soda_dist.errors import UserError

Kind = Literal["none", "pixels", "cameras"]
Boxes = NDArray[Any]
"""int64, or float64 for fractional pixels."""
POSE_SIZES: Mapping[Kind, int] = {"none": 0, "pixels": 4, "cameras": 21}
CAMERA_COLUMNS = {"camera_to_world": pa.list_(pa.float32(), 16), "intrinsics": pa.list_(pa.float32(), 9)}


class Cameras(NamedTuple):
    """Cameras of m images, as stored."""

    to_world: NDArray[np.floating]
    """[m, 4, 4]."""
    intrinsics: NDArray[np.floating]
    """[m, 3, 3], in pixels of the stored image."""


def read_cameras(table: pa.Table) -> Cameras:
    """Read the columns `CAMERA_COLUMNS` of a table; a `UserError` if a row lacks a camera."""
    found = []
    for name, side in zip(CAMERA_COLUMNS, (4, 3), strict=True):
        column = table.column(name)
        if column.null_count:
            got = f"cameras, but {column.null_count} of {len(table)} rows lack {name}"
            raise UserError("data.pose", got, "a camera in each row", "prepare the data again")
        values = [chunk.flatten().to_numpy() for chunk in column.chunks]
        found.append(np.concatenate([*values, np.zeros(0, np.float32)]).reshape(-1, side, side))
    return Cameras(*found)


def frames(boxes: Boxes, flipped: NDArray[np.bool_], sizes: Ints) -> NDArray[np.float32]:
    """Compute frames of views.

    Args:
        boxes: [..., 4], top, left, height and width of the view, in pixels of its image.
        flipped: bool [...].
        sizes: int64 [..., 2], height and width of the image.

    Returns:
        float32 [..., 4].
    """
    start = 2 * boxes[..., :2] / sizes - 1
    stop = 2 * (boxes[..., :2] + boxes[..., 2:]) / sizes - 1
    mirrored = flipped[..., None] & np.array([False, True])
    ends = np.where(mirrored, stop, start), np.where(mirrored, start, stop)
    return np.concatenate(ends, -1).astype(np.float32)


def cameras(boxes: Boxes, flipped: NDArray[np.bool_], stored: Cameras) -> NDArray[np.float32]:
    """Compute cameras of views: u = (x - left) / width, v = (y - top) / height; 1 - u in a mirrored view.

    Args:
        boxes, flipped: as in `frames`.
        stored: camera of each view's image, [..., 4, 4] and [..., 3, 3].

    Returns:
        float32 [..., 21].
    """
    to_view = np.zeros((*flipped.shape, 3, 3))
    sign = np.where(flipped, -1.0, 1.0)
    to_view[..., 0, 0] = sign / boxes[..., 3]
    to_view[..., 1, 1] = 1 / boxes[..., 2]
    to_view[..., 0, 2] = flipped - sign * boxes[..., 1] / boxes[..., 3]
    to_view[..., 1, 2] = -boxes[..., 0] / boxes[..., 2]
    to_view[..., 2, 2] = 1
    intrinsics = to_view @ stored.intrinsics.astype(np.float64)
    parts = [stored.to_world[..., :3, :].reshape(*flipped.shape, 12), intrinsics.reshape(*flipped.shape, 9)]
    return np.concatenate(parts, -1).astype(np.float32)


def view_angles(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
    """Angle in degrees, 0..180, between the directions in which two cameras look.

    Args:
        one, other: cameras as `cameras` computes them, [..., 21]; they broadcast.

    Returns:
        float64 [...].
    """
    # The third column of camera_to_world: z, forward, in world coordinates.
    first, second = (each[..., 2:12:4].astype(np.float64) for each in (one, other))
    across = np.linalg.norm(np.cross(first, second), axis=-1)
    return np.degrees(np.arctan2(across, (first * second).sum(-1)))  # accurate near 0 and 180, where arccos is not


def poses(
    kind: Kind, boxes: Boxes, flipped: NDArray[np.bool_], sizes: Ints, stored: Cameras | None
) -> NDArray[np.float32]:
    """Compute poses of views: float32 [..., P], P as in `POSE_SIZES`; arguments as in `frames` and `cameras`."""
    if kind == "pixels":
        return frames(boxes, flipped, sizes)
    if kind == "cameras":
        assert stored is not None, "cameras must be read with the images"
        return cameras(boxes, flipped, stored)
    return np.zeros((*flipped.shape, 0), np.float32)
