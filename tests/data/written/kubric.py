"""Kubric's renderings: RGBA images of a point on a transparent background, and metadata.json as its workers write it.

Where the point is seen is worked out as Kubric's own `project_point` does: by the inverse of the camera's matrix and by
its K for a unit image, not by our axes.
"""

import io
import json
from typing import Any

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

from soda_dist.data.storage.folder import Folder

WIDTH, HEIGHT = 40, 30
FOCAL, SENSOR = 35.0, 32.0
POINT = np.array([1.0, 0.0, 1.4])
"""In the world."""
POSITIONS = [[0.0, -4.0, 1.0], [5.0, 0.0, 1.0], [3.0, -3.0, 2.5]]
QUATERNIONS = [[0.5**0.5, 0.5**0.5, 0.0, 0.0], [0.5, 0.5, 0.5, 0.5], [0.7444974, 0.5851785, 0.2298478, 0.2246324]]
"""W X Y Z: a quarter turn around x (looks along +y, z up); axes x y z to y z x (looks along -x, z up); aslant."""
UNDER = (10, 20, 30)
"""The colour of what is transparent."""
HALF = (200, 100, 0, 128)
"""The top left pixel, half transparent."""
CHAIRS = {"0001": "chair", "0002": "airplane", "0003": "chair"}


def _normal(quaternion: list[float]) -> np.ndarray:
    return np.array(quaternion) / np.linalg.norm(quaternion)


def matrix_world(view: int) -> np.ndarray:
    """Camera to world, in Kubric's axes: the camera looks down -z, y is up."""
    matrix = np.eye(4)
    w, x, y, z = _normal(QUATERNIONS[view])
    matrix[:3, :3] = Rotation.from_quat([x, y, z, w]).as_matrix()
    matrix[:3, 3] = POSITIONS[view]
    return matrix


def seen(view: int) -> np.ndarray:
    """(u, v) of the point, in pixels."""
    height = SENSOR / WIDTH * HEIGHT
    intrinsics = np.array([[FOCAL / SENSOR, 0, -0.5], [0, -FOCAL / height, -0.5], [0, 0, -1]])
    projected = intrinsics @ (np.linalg.inv(matrix_world(view)) @ [*POINT, 1])[:3]
    return projected[:2] / projected[2] * [WIDTH, HEIGHT]


def pixels(view: int, shade: int) -> np.ndarray:
    """RGBA."""
    rgba = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    rgba[:, :, :3] = UNDER
    rgba[0, 0] = HALF
    u, v = seen(view).astype(int)
    rgba[v, u] = (shade, shade, shade, 255)
    return rgba


def encoded(image: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, "PNG")
    return sink.getvalue()


def metadata(category: str | None, views: int = 3) -> dict[str, Any]:
    """What get_scene_metadata, get_camera_info and get_instance_info give; R is of the last frame."""
    instance = {"asset_id": "02691156/1a2b", "positions": [[0, 0, 0]] * views, "bboxes": []}
    return {
        "metadata": {"resolution": [WIDTH, HEIGHT], "frame_rate": 24, "num_frames": views, "seed": 7},
        "camera": {
            "focal_length": FOCAL,
            "sensor_width": SENSOR,
            "field_of_view": 0.857,
            "positions": POSITIONS[:views],
            "quaternions": [_normal(quaternion).tolist() for quaternion in QUATERNIONS[:views]],
            "K": [[1.09375, 0, -0.5], [0, -1.4583, -0.5], [0, 0, -1]],
            "R": matrix_world(views - 1).tolist(),
        },
        "instances": [instance | ({"category": category} if category else {})],
    }


def write_object(folder: Folder, name: str, tree: Any, views: int = 3) -> None:
    folder.write(f"{name}/metadata.json", json.dumps(tree).encode())
    for view in range(views):
        folder.write(f"{name}/rgba_{view:05d}.png", encoded(pixels(view, 60 * view)))


def write(folder: Folder) -> None:
    """Three objects with splits that say which is whose."""
    for name, category in CHAIRS.items():
        write_object(folder, name, metadata(category))
    folder.write("splits.json", json.dumps({"train": ["0003", "0001"], "test": ["0002"]}).encode())
