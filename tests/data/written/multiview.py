"""Folders of posed images: each image is black but for a dot, which its camera sees at a place worked out by hand."""

import io
import json

import numpy as np
from PIL import Image

from soda_dist.data.storage.folder import Folder

SIZE = (24, 32)
DOT = (1.05, 0.0, 1.45)
"""In the world."""
FRONT = [[1, 0, 0, 0], [0, 0, 1, -4], [0, -1, 0, 1], [0, 0, 0, 1]]
"""From (0, -4, 1) along +y, upright (the world's z is up): the dot is at (1.05, -0.45, 4) of the camera."""
RIGHT = [[0, 0, -1, 5.05], [1, 0, 0, 0], [0, -1, 0, 1], [0, 0, 0, 1]]
"""From (5.05, 0, 1) along -x: the dot is at (0, -0.45, 4)."""
INTRINSICS = [[40, 0, 16], [0, 40, 12], [0, 0, 1]]
PIXELS = {"front": (7, 26), "right": (7, 16)}
"""Row and column of the dot: v = 12 - 40 * 0.45 / 4 = 7.5; u = 16 + 40 * 1.05 / 4 = 26.5, or 16, a pixel's edge."""
OBJECTS = {"cup": 3, "hat": 1, "shoe one": 2}
"""Views of each."""


def image(view: str, shade: int, kind: str = "PNG") -> bytes:
    """The dot as that view sees it."""
    pixels = np.zeros((*SIZE, 3), np.uint8)
    pixels[PIXELS[view]] = shade
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, kind)
    return sink.getvalue()


def cameras(count: int) -> dict[str, dict]:
    """Of an object's first views: the front's, the right's, and the front's once more."""
    poses = {"a.png": FRONT, "b.png": RIGHT, "c.JPG": FRONT}
    return {file: {"camera_to_world": pose, "intrinsics": INTRINSICS} for file, pose in list(poses.items())[:count]}


def write_json(folder: Folder, name: str, value: object) -> None:
    """Written here, apart from the code under test."""
    folder.write(name, json.dumps(value).encode())


def write(folder: Folder) -> None:
    """The objects, neither splits nor labels."""
    for number, (name, count) in enumerate(OBJECTS.items()):
        write_json(folder, f"{name}/cameras.json", cameras(count))
        files = {"a.png": image("front", 200 + number), "b.png": image("right", 100 + number)}
        files["c.JPG"] = image("front", 250, "JPEG")
        for file, data in list(files.items())[:count]:
            folder.write(f"{name}/{file}", data)


def write_lists(folder: Folder) -> None:
    """Splits and classes."""
    write_json(folder, "splits.json", {"train": ["hat", "cup"], "val": [], "test": ["shoe one"]})
    write_json(folder, "labels.json", {"shoe one": "worn", "hat": "worn", "cup": "filled"})
