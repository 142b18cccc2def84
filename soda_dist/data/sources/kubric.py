"""Objects rendered by Kubric, one folder each: the paper's ShapeNet and Google Scanned Objects (D.1).

Layout of Kubric's workers (https://github.com/google-research/kubric) with background_transparency:

    OBJECT/rgba_00000.png, ...       or CATEGORY/OBJECT/...
    OBJECT/metadata.json             metadata.resolution; camera: focal_length, sensor_width, positions, quaternions;
                                     instances: the first one's category
    splits.json                      optional, {"train": [OBJECT, ...], "val": ..., "test": ...}

The renderings and splits are not published: without splits.json, objects are split 80/10/10 (appendix B). The paper has
120 views per object. Cameras come from positions and quaternions (W X Y Z, camera to world); K and R in the metadata
describe a single frame. Kubric's camera looks along -z with y up, and is converted to our axes. Downscaled images keep
their camera; cropped ones are refused.

Training drops alpha, and transparent pixels have arbitrary colours. Images are therefore composed onto a background,
white (our reading) unless `background=black`, and stored as PNG; images without alpha keep their bytes.

Examples:
    python jobs/prepare_data.py shapenet --source renderings/shapenet --data data/shapenet
    python jobs/prepare_data.py gso --source renderings/gso --data data/gso background=black
"""

import io
import json
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image

from soda_dist.data import source as contract
from soda_dist.data.formats.camera_folders import POSE_COLUMNS, TOLERANCE, Matrix, object_rows, pose_values, read_splits
from soda_dist.data.formats.fixed_records import encode_png
from soda_dist.data.formats.listing import list_folders
from soda_dist.data.shards import Label
from soda_dist.data.source import Contents, Part, Row, Source, UnreadableError, check_image, printable_text
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.errors import UserError

SHAPENET = (
    "airplane", "ashcan", "bag", "basket", "bathtub", "bed", "bench", "birdhouse", "bookshelf", "bottle", "bowl", "bus",
    "cabinet", "camera", "can", "cap", "car", "cellular telephone", "chair", "clock", "computer keyboard",
    "dishwasher", "display", "earphone", "faucet", "file", "guitar", "helmet", "jar", "knife", "lamp", "laptop",
    "loudspeaker", "mailbox", "microphone", "microwave", "motorcycle", "mug", "piano", "pillow", "pistol", "pot",
    "printer", "remote control", "rifle", "rocket", "skateboard", "sofa", "stove", "table", "telephone", "tower",
    "train", "vessel", "washer",
)  # fmt: skip
"""The 55 categories of ShapeNetCore.v2, as in Kubric's manifest."""
GSO = (
    "Action Figures", "Bag", "Board Games", "Bottles and Cans and Cups", "Camera", "Car Seat", "Consumer Goods", "Hat",
    "Headphones", "Keyboard", "Legos", "Media Cases", "Mouse", "None", "Shoe", "Stuffed Toys", "Toys",
)  # fmt: skip
"""The 17 categories of Google Scanned Objects, one of them called None."""
METADATA = "metadata.json"
SHADES = {"white": 255, "black": 0}
PROBED = 16
"""Folders checked for metadata, since single renderings may have failed."""
TO_OURS = np.diag([1.0, -1, -1, 1])
"""Our camera axes to Kubric's."""
LAYOUT = f"[CATEGORY/]OBJECT/{METADATA} and rgba_00000.png"


class Options(contract.Options):
    background: Literal["white", "black"] = "white"
    """Colour behind transparent pixels."""


class Scene(NamedTuple):
    """Contents of an object's metadata.json."""

    resolution: tuple[float, float]
    """Width and height in pixels."""
    focal: float
    """Focal length in image widths."""
    to_world: tuple[Matrix | str, ...]
    """Each view's camera, or its problem."""
    category: str | None


@dataclass(frozen=True)
class Kubric:
    """Objects, category names, and grey level of the background."""

    folder: Folder
    objects: tuple[Part, ...]
    categories: tuple[str, ...]
    shade: int

    @property
    def contents(self) -> Contents:
        labels = {"label": Label(kind="class", names=self.categories)}
        return replace(Contents.with_labels(labels, "label", *POSE_COLUMNS, rows_per_group=120), files=self.folder)

    def parts(self) -> Sequence[Part]:
        return self.objects

    def index(self, part: Part) -> pa.Table:
        scene = self._scene(part.name)
        files = [METADATA] if isinstance(scene, str) else [f"rgba_{at:05d}.png" for at in range(len(scene.to_world))]
        return pa.table({"name": pa.array([f"{part.name}/{file}" for file in files], pa.string())})

    def rows(self, index: pa.Table) -> Iterator[Row]:
        return object_rows(index, lambda name: name.rpartition("/")[0], self._scene, self._row)

    def _scene(self, name: str) -> Scene | str:
        try:
            return _parse(json.loads(self.folder.read(f"{name}/{METADATA}")))
        except FileNotFoundError:
            return f"no {METADATA}"
        except (ValueError, RecursionError):
            return f"invalid JSON in {METADATA}"

    def _row(self, entry: Mapping[str, Any], scene: Scene | str) -> Row:
        path = entry["name"]
        try:
            return Row(path, *self._view(path, scene))
        except FileNotFoundError:
            return Row(path, b"", {}, "a missing file")
        except UnreadableError as error:
            return Row(path, b"", {}, str(error))

    def _view(self, path: str, scene: Scene | str) -> tuple[bytes, dict[str, Any]]:
        """Read an image and its columns."""
        name, _, file = path.rpartition("/")
        if isinstance(scene, str):
            raise UnreadableError(scene)
        to_world = scene.to_world[int(file[5:-4])]
        if isinstance(to_world, str):
            raise UnreadableError(to_world)
        if scene.category not in (None, *self.categories):
            raise UnreadableError(f"an unknown category {printable_text(str(scene.category))[:40]}")
        label = None if scene.category is None else self.categories.index(scene.category)
        data, (width, height) = self._image(path)
        if width * scene.resolution[1] != height * scene.resolution[0]:
            rendered = "x".join(f"{side:g}" for side in scene.resolution)
            raise UnreadableError(f"a cropped image: {width}x{height} of {rendered} pixels")
        focal = scene.focal * width
        intrinsics = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
        return data, {"label": label, **pose_values(name, to_world, intrinsics)}

    def _image(self, path: str) -> tuple[bytes, tuple[int, int]]:
        """Read an image on its background, and its width and height."""
        data = self.folder.read(path)
        if problem := check_image(data):
            raise UnreadableError(problem)
        try:
            return _on_background(data, self.shade)
        except (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error) as error:
            raise UnreadableError(f"a broken image ({error})") from None


def _parse(tree: Any) -> Scene | str:
    try:
        camera, (width, height) = tree["camera"], tree["metadata"]["resolution"]
        numbers = np.array([width, height, camera["focal_length"], camera["sensor_width"]], np.float64)
        positions, quaternions = (np.asarray(camera[key], np.float64) for key in ("positions", "quaternions"))
        instances = tree.get("instances") or [{}]
        category = instances[0].get("category")
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        return f"{METADATA} without camera or resolution ({type(error).__name__}: {error})"
    if not positions.size or positions.shape[1:] != (3,) or quaternions.shape != (len(positions), 4):
        return f"{METADATA} with positions {[*positions.shape]} and quaternions {[*quaternions.shape]}"
    if not (np.isfinite(numbers).all() and numbers.min() > 0):
        return f"{METADATA} with a resolution or focal length that is not positive"
    poses = tuple(_pose(*pose) for pose in zip(positions, quaternions, strict=True))
    return Scene((numbers[0], numbers[1]), numbers[2] / numbers[3], poses, category)


def _pose(position: Matrix, quaternion: Matrix) -> Matrix | str:
    """Convert to camera to world, in our axes."""
    if not (np.isfinite(position).all() and np.isfinite(quaternion).all()):
        return f"a camera in {METADATA} with non-finite numbers"
    length = np.linalg.norm(quaternion)
    if abs(length - 1) > TOLERANCE:
        return f"a quaternion in {METADATA} of length {length:.4g}"
    w, x, y, z = quaternion
    pose = np.eye(4)
    pose[:3, 3] = position
    pose[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return pose @ TO_OURS


def _on_background(data: bytes, shade: int) -> tuple[bytes, tuple[int, int]]:
    """Return an image without alpha (unchanged if it has none), and its width and height."""
    with Image.open(io.BytesIO(data)) as image:
        if "A" not in image.getbands() and "transparency" not in image.info:
            return data, image.size
        pixels = np.asarray(image.convert("RGBA")).astype(np.uint16)
    alpha = pixels[:, :, 3:]
    mixed = (pixels[:, :, :3] * alpha + shade * (255 - alpha) + 127) // 255
    return encode_png(mixed.astype(np.uint8)), (pixels.shape[1], pixels.shape[0])


def open_shapenet(uri: str, options: Options) -> Source:
    """Open renderings of ShapeNet at `uri`; raises like `open_gso`."""
    return _open(uri, SHAPENET, options)


def open_gso(uri: str, options: Options) -> Source:
    """Open renderings of Google Scanned Objects at `uri`.

    Raises:
        UserError: no rendered objects, or a splits.json that does not match them.
    """
    return _open(uri, GSO, options)


def _open(uri: str, categories: tuple[str, ...], options: Options) -> Source:
    folder = open_folder(uri)
    names = list_folders(folder)
    if not _rendered(folder, names):
        names = [f"{name}/{inner}" for name in names for inner in list_folders(folder, name)]
        if not _rendered(folder, names):
            raise UserError(folder.uri, f"no {METADATA} in its folders", LAYOUT, "correct the path")
    splits = read_splits(folder, names, options.seed)
    parts = tuple(Part(split, name) for split, objects in splits.items() for name in objects)
    return Kubric(folder, parts, categories, SHADES[options.background])


def _rendered(folder: Folder, names: Sequence[str]) -> bool:
    return any(folder.exists(f"{name}/{METADATA}") for name in names[:PROBED])
