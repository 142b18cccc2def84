"""NMR_Dataset: lists of objects by category, and objects whose images are black but for a point of the world.

Cameras are written as the published files have them: world to camera, and for image coordinates in [-1, 1].
"""

import io

import numpy as np
from PIL import Image

from soda_dist.data.storage.folder import Folder

SIDE, VIEWS = 64, 24
POINT = np.array([0.2, 0.3, 0.1])
"""In the files' world, where y is up."""
PLACE = np.array([0.0, 0.0, -2.0])
"""Of view 0's camera, which looks along +z, upright: x right is -x of the world, y down is -y."""
FOCAL = 2.0
LISTS = {
    "02691156": {"train": ["1a2b", "3c-4d"], "val": ["aaaa"], "test": ["bbbb"]},
    "03001627": {"train": ["cccc"], "val": [], "test": ["dddd", "eeee"]},
}
METADATA = """\
'02691156':
  id: '02691156'
  name: airplane,aeroplane,plane
03001627: {id: 03001627, name: chair}
04090263: {id: '04090263', name: rifle}
"""


def world_mat(view: int) -> np.ndarray:
    """View 0 stands at PLACE; the others are turned around the world's y axis by 15 degrees each."""
    angle = np.radians(15 * view)
    turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    matrix = np.eye(4)
    matrix[:3, :3] = np.diag([-1.0, -1.0, 1.0]) @ turn
    matrix[:3, 3] = [0, 0, 2]
    return matrix


def camera_mat() -> np.ndarray:
    """Focal length in half widths."""
    return np.diag([FOCAL, FOCAL, 1.0, 1.0])


def pixel(view: int) -> tuple[int, int]:
    """Row and column that the point falls in."""
    x, y, z, _ = camera_mat() @ world_mat(view) @ [*POINT, 1]
    return int((y / z + 1) / 2 * SIDE), int((x / z + 1) / 2 * SIDE)


def image(view: int, shade: int) -> bytes:
    """White but for the point."""
    pixels = np.full((SIDE, SIDE, 3), 255, np.uint8)
    pixels[pixel(view)] = shade
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def cameras() -> dict[str, np.ndarray]:
    """The matrices of cameras.npz."""
    matrices = {f"world_mat_{view}": world_mat(view) for view in range(VIEWS)}
    matrices |= {f"camera_mat_{view}": camera_mat() for view in range(VIEWS)}
    return matrices | {f"world_mat_inv_{view}": np.linalg.inv(world_mat(view)) for view in range(VIEWS)}


def npz(matrices: dict[str, np.ndarray]) -> bytes:
    sink = io.BytesIO()
    np.savez(sink, **matrices)
    return sink.getvalue()


def files() -> dict[str, bytes]:
    """All of it, by path; the last list of a category ends in blank lines."""
    found = {"metadata.yaml": METADATA.encode()}
    data = npz(cameras())
    images = [image(view, 10 * view) for view in range(VIEWS)]
    for synset, lists in LISTS.items():
        for split, names in lists.items():
            blank = "\n\n" if split == "test" else ""
            found[f"{synset}/softras_{split}.lst"] = "".join(f"{name}\n{blank}" for name in names).encode()
            for name in names:
                found[f"{synset}/{name}/cameras.npz"] = data
                found |= {f"{synset}/{name}/image/{view:04d}.png": file for view, file in enumerate(images)}
    return found


def write(folder: Folder) -> None:
    """Unpacked."""
    for name, data in files().items():
        folder.write(name, data)


def below(root: str, found: dict[str, bytes]) -> dict[str, bytes]:
    """The same files as an archive names them, beside masks, which nobody asked for."""
    masks = {name.replace("/image/", "/mask/"): b"mask" for name in found if "/image/" in name}
    return {f"{root}{name}": data for name, data in {**found, **masks}.items()}
