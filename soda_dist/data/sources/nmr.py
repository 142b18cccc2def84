"""NMR: ShapeNet objects of 13 categories, 24 renderings of 64x64 pixels each, for neural mesh rendering.

The unpacked NMR_Dataset.zip of Differentiable Volumetric Rendering, as its readers there, in pixelNeRF and in SRT take
it (https://github.com/autonomousvision/differentiable_volumetric_rendering, with a FAQ on the matrices):

    metadata.yaml or metadata.yml            {SYNSET: {id, name}}; without it synsets are the names
    SYNSET/softras_{train,val,test}.lst      the splits: an object a line
    SYNSET/OBJECT/image/0000.png ... 0023.png
    SYNSET/OBJECT/cameras.npz                world_mat_I, world to camera, and camera_mat_I of view I

A camera_mat maps the axes x right, y down, z forward to image coordinates in [-1, 1], with the top left pixel's outer
corner at (-1, -1). The world is turned by (x, -z, y), as pixelNeRF and SRT turn it: z is up in all our data sets. The
files' inverse matrices are not read, since they may be absent.
"""

import io
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import yaml

from soda_dist.data.decode import read_header
from soda_dist.data.shards import Label
from soda_dist.data.sources.contract import Contents, Options, Part, Row, Source, check_image
from soda_dist.data.sources.posed import POSED_COLUMNS, Matrix, object_rows, pose_problem, posed_columns
from soda_dist.data.storage import Folder, open_folder
from soda_dist.errors import UserError

ROOT = "NMR_Dataset"
METADATA = ("metadata.yaml", "metadata.yml")
SPLITS = ("train", "val", "test")
SYNSET = re.compile(r"\d{8}")
OBJECT = re.compile(r"[\w-][\w.-]*")
VIEWS = 24
CAMERAS, IMAGE = "cameras.npz", "/image/"
Z_UP = np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
LAYOUT = f"SYNSET/softras_{{{','.join(SPLITS)}}}.lst and SYNSET/OBJECT/image/0000.png"


class Camera(NamedTuple):
    """Of a view, in our axes; intrinsics for image coordinates in [-1, 1]."""

    to_world: Matrix
    intrinsics: Matrix


@dataclass(frozen=True)
class Nmr:
    """The categories that are there: (synset, name), by synset."""

    folder: Folder
    categories: tuple[tuple[str, str], ...]

    @property
    def contents(self) -> Contents:
        return Contents(
            columns=(pa.field("label", pa.int32()), *POSED_COLUMNS),
            labels={"label": Label(kind="class", names=tuple(name for _, name in self.categories))},
            main_label="label",
            rows_per_group=10 * VIEWS,
        )

    def parts(self) -> Sequence[Part]:
        return [Part(split, synset) for split in SPLITS for synset, _ in self.categories]

    def index(self, part: Part) -> pa.Table:
        objects = _listed(self.folder, part.name, part.split)
        names = [f"{part.name}/{name}{IMAGE}{view:04d}.png" for name in objects for view in range(VIEWS)]
        label = [synset for synset, _ in self.categories].index(part.name)
        return pa.table({"name": pa.array(names, pa.string()), "label": pa.array([label] * len(names), pa.int32())})

    def rows(self, index: pa.Table) -> Iterator[Row]:
        return object_rows(index, lambda name: name.partition(IMAGE)[0], self._cameras, self._row)

    def _cameras(self, name: str) -> Sequence[Camera | str]:
        """Each view's camera, or what is wrong with it."""
        try:
            with np.load(io.BytesIO(self.folder.read(f"{name}/{CAMERAS}")), allow_pickle=False) as file:
                return [_camera(file, view) for view in range(VIEWS)]
        except FileNotFoundError:
            return [f"no {CAMERAS}"] * VIEWS
        except (zipfile.BadZipFile, ValueError, EOFError, OSError, AttributeError, TypeError):
            return [f"{CAMERAS}, which is not a whole file of matrices"] * VIEWS

    def _row(self, entry: Mapping[str, Any], cameras: Sequence[Camera | str]) -> Row:
        name, _, file = entry["name"].partition(IMAGE)
        camera = cameras[int(file.removesuffix(".png"))]
        if isinstance(camera, str):
            return Row(entry["name"], b"", {}, camera)
        try:
            data = self.folder.read(entry["name"])
        except FileNotFoundError:
            return Row(entry["name"], b"", {}, "a missing file")
        header = read_header(data)
        if header is None:
            return Row(entry["name"], b"", {}, check_image(data) or "an image that cannot be decoded")
        half_width, half_height = header.width / 2, header.height / 2
        pixels = np.array([[half_width, 0, half_width], [0, half_height, half_height], [0, 0, 1]])
        posed = posed_columns(name, camera.to_world, pixels @ camera.intrinsics)
        return Row(entry["name"], data, {"label": entry["label"], **posed})


def _camera(file: Mapping[str, Any], view: int) -> Camera | str:
    found = []
    for key in (f"world_mat_{view}", f"camera_mat_{view}"):
        if key not in file:
            return f"no {key} in {CAMERAS}"
        matrix = np.asarray(file[key], np.float64)
        if matrix.shape not in ((3, 4), (4, 4)) or not np.isfinite(matrix).all():
            return f"{key} of shape {[*matrix.shape]} in {CAMERAS}, or with numbers that are not finite"
        found.append(np.vstack([matrix, [0, 0, 0, 1]]) if len(matrix) == 3 else matrix)
    from_world, intrinsics = found
    # A world of either hand will do: rays and places are exact in both.
    problem = pose_problem(from_world, mirrors=True)
    if problem:
        return f"{problem} in world_mat_{view} of {CAMERAS}"
    if min(intrinsics[0, 0], intrinsics[1, 1]) <= 0 or (intrinsics[2, :3] != [0, 0, 1]).any():
        return f"another form than focal lengths and 0 0 1 in camera_mat_{view} of {CAMERAS}"
    return Camera(Z_UP @ np.linalg.inv(from_world), intrinsics[:3, :3])


def open_source(uri: str, options: Options) -> Source:
    """NMR in the folder `uri`, or in its NMR_Dataset.

    Raises:
        UserError: no categories, a list that is missing, or an object that two lists have.
    """
    folder = open_folder(uri)
    folders = folder.folders()
    if ROOT in folders:
        folder = folder.child(ROOT)
        folders = folder.folders()
    synsets = [name for name in folders if SYNSET.fullmatch(name)]
    if not synsets:
        raise UserError(folder.uri, "no folder SYNSET/", LAYOUT, "correct the path, or unpack NMR_Dataset.zip")
    for synset in synsets:
        _check_splits(folder, synset)
    names = _names(folder)
    return Nmr(folder, tuple((synset, names.get(synset, synset)) for synset in synsets))


def _check_splits(folder: Folder, synset: str) -> None:
    split_of: dict[str, str] = {}
    for split in SPLITS:
        for name in _listed(folder, synset, split):
            if name in split_of:
                uri = folder.file_uri(_list(synset, split))
                other = f"{name}, which is in {_list(synset, split_of[name])} too"
                raise UserError(uri, other, "each object once", "download it again")
            split_of[name] = split


def _list(synset: str, split: str) -> str:
    return f"{synset}/softras_{split}.lst"


def _listed(folder: Folder, synset: str, split: str) -> list[str]:
    """The objects of a list, without blank lines."""
    path = _list(synset, split)
    try:
        names = folder.read(path).decode(errors="replace").split()
    except FileNotFoundError:
        raise UserError(folder.file_uri(path), "no such file", LAYOUT, "unpack all of NMR_Dataset.zip") from None
    wrong = next((name for name in names if not OBJECT.fullmatch(name)), None)
    if wrong is not None:
        raise UserError(folder.file_uri(path), f"{wrong[:80]!r}", "names of folders", "download it again")
    return names


def _names(folder: Folder) -> dict[str, str]:
    """The name of each synset in metadata.yaml: the first of those that it lists. Empty without the file."""
    path = next((name for name in METADATA if folder.exists(name)), None)
    if path is None:
        return {}
    try:
        # All scalars are read as text: of a bare 03001627, YAML would make an octal number.
        tree = yaml.load(folder.read(path), Loader=yaml.BaseLoader)
        return {synset: entry["name"].split(",")[0].strip() for synset, entry in tree.items()}
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, UnicodeDecodeError):
        raise UserError(
            folder.file_uri(path), "no names by synset", "{SYNSET: {id, name}}", "restore it, or remove it"
        ) from None
