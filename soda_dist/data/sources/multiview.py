"""Custom photographs or renderings of objects, with cameras.

    OBJECT/cameras.json      {"a.png": {"camera_to_world": [4x4], "intrinsics": [3x3]}, ...}
    OBJECT/a.png, ...        JPEG or PNG; one camera per file
    splits.json              optional, {"train": [OBJECT, ...], "val": ..., "test": ...}; default 80/10/10 by object
    labels.json              optional, {OBJECT: class, ...}

camera_to_world maps the camera's axes (x right, y down, z forward, as in OpenCV and COLMAP) to the world's: a rotation
and the camera's position, with the last row 0 0 0 1. For an OpenGL or Blender matrix, negate the second and third
columns; invert a world-to-camera matrix. intrinsics are [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in pixels of the stored
file, ignoring EXIF rotation; the top left pixel's centre is (0.5, 0.5).

Cameras are checked during listing. An object with a single view is its own source. Training drops alpha, so compose
images onto a background first.

Example:
    python jobs/prepare_data.py multiview --source captures --data data/captures
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from soda_dist.data.formats.camera_folders import POSE_COLUMNS, Matrix, pose_problem, pose_values, read_splits
from soda_dist.data.formats.listing import list_files, list_folders
from soda_dist.data.formats.published_names import one_form
from soda_dist.data.shards import Label
from soda_dist.data.source import Contents, Options, Part, Row, Source, printable_text, read_rows
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.data.views.poses import CAMERA_COLUMNS
from soda_dist.errors import UserError

CAMERAS, LABELS = "cameras.json", "labels.json"
IMAGES = (".png", ".jpg", ".jpeg")
SHAPES = dict(zip(CAMERA_COLUMNS, ((4, 4), (3, 3)), strict=True))
LAYOUT = f"OBJECT/{CAMERAS} and OBJECT/*.png or *.jpg"


@dataclass(frozen=True)
class MultiView:
    """Class numbers of objects in `labels`, class names in `classes`; both empty without classes."""

    folder: Folder
    objects: tuple[Part, ...]
    labels: dict[str, int]
    classes: tuple[str, ...]

    @property
    def contents(self) -> Contents:
        labels = {"label": Label(kind="class", names=self.classes)} if self.classes else {}
        return replace(Contents.with_labels(labels, "label" if labels else None, *POSE_COLUMNS), files=self.folder)

    def parts(self) -> Sequence[Part]:
        return self.objects

    def index(self, part: Part) -> pa.Table:
        files = [entry.name.partition("/")[2] for entry in list_files(self.folder, f"{part.name}/")]
        cameras = self._cameras(part.name, files)
        rows = [
            {"name": f"{part.name}/{file}", **self._row(part.name, file, cameras[file])} for file in sorted(cameras)
        ]
        fields = [pa.field("name", pa.string()), *self.contents.columns]
        return pa.table({field.name: pa.array([row[field.name] for row in rows], field.type) for field in fields})

    def rows(self, index: pa.Table) -> Iterator[Row]:
        columns = [field.name for field in self.contents.columns]
        return read_rows(index, lambda entry: self.folder.read(entry["name"]), columns)

    def _cameras(self, name: str, files: list[str]) -> Mapping[str, Any]:
        path = f"{name}/{CAMERAS}"
        if CAMERAS not in files:
            raise UserError(self.folder.file_uri(name), f"no {CAMERAS}", LAYOUT, "add it, or remove the folder")
        cameras = self.folder.read_json(path)
        if not isinstance(cameras, dict) or not cameras:
            raise self._error(path, "no cameras", "a camera for each file", "add them, or remove the folder")
        stored = {one_form(file): file for file in files}
        cameras = {stored.get(one_form(file), file): camera for file, camera in cameras.items()}
        for file in sorted(cameras):
            if file not in files:
                got = f"a camera for {printable_text(file)}, which does not exist"
                raise self._error(path, got, "files in its folder", "add the file")
        for file in files:
            if file.lower().endswith(IMAGES) and file not in cameras:
                raise self._error(path, f"no camera for {file}", "one for each image", "add it, or remove the file")
        return cameras

    def _row(self, name: str, file: str, camera: Any) -> dict[str, Any]:
        path = f"{name}/{CAMERAS}"
        to_world, intrinsics = (self._matrix(path, file, camera, key) for key in SHAPES)
        problem = pose_problem(to_world)
        if problem:
            allowed = "a rotation, a position, and a last row 0 0 0 1"
            raise self._error(path, f"{problem} in camera_to_world of {file}", allowed, "correct the matrix")
        problem = _intrinsics_problem(intrinsics)
        if problem:
            allowed = "fx 0 cx, 0 fy cy, 0 0 1 in pixels"
            raise self._error(path, f"{problem} in intrinsics of {file}", allowed, "correct the matrix")
        label = {"label": self.labels[name]} if self.classes else {}
        return {"name": f"{name}/{file}", **label, **pose_values(name, to_world, intrinsics)}

    def _matrix(self, path: str, file: str, camera: Any, key: str) -> Matrix:
        shape = SHAPES[key]
        allowed = f"{shape[0]} lists of {shape[1]} numbers"
        if not isinstance(camera, dict) or key not in camera:
            raise self._error(path, f"no {key} for {file}", allowed, "add it")
        try:
            matrix = np.asarray(camera[key], np.float64)
        except (TypeError, ValueError, OverflowError):
            raise self._error(path, f"{key} of {file} that is not a matrix", allowed, "correct it") from None
        if matrix.shape != shape:
            raise self._error(path, f"{key} of {file} of shape {[*matrix.shape]}", allowed, "correct it")
        if not np.isfinite(matrix).all():
            raise self._error(path, f"non-finite numbers in {key} of {file}", allowed, "correct it")
        return matrix

    def _error(self, path: str, got: str, allowed: str, remedy: str) -> UserError:
        return UserError(self.folder.file_uri(path), got, allowed, remedy)


def _intrinsics_problem(matrix: Matrix) -> str | None:
    if (matrix[2] != [0, 0, 1]).any() or matrix[1, 0] != 0:
        return "an invalid form"
    if matrix[0, 0] <= 0 or matrix[1, 1] <= 0:
        return f"focal lengths of {matrix[0, 0]:.4g} and {matrix[1, 1]:.4g}"
    if (matrix[:2, 2] <= 1).all():
        return f"a principal point of {matrix[0, 2]:.4g} {matrix[1, 2]:.4g}, in the image's corner"
    return None


def open_source(uri: str, options: Options) -> Source:
    """Open the folders of objects at `uri`.

    Raises:
        UserError: no folders, or invalid splits or labels.
    """
    folder = open_folder(uri)
    names = list_folders(folder)
    if not names:
        raise UserError(folder.uri, "no folders of objects", LAYOUT, "correct the path")
    splits = read_splits(folder, names, options.seed)
    labels = _labels(folder, names)
    classes = tuple(sorted(set(labels.values())))
    return MultiView(
        folder=folder,
        objects=tuple(Part(split, name) for split, objects in splits.items() for name in objects),
        labels={name: classes.index(label) for name, label in labels.items()},
        classes=classes,
    )


def _labels(folder: Folder, names: Sequence[str]) -> dict[str, str]:
    try:
        labels = folder.read_json(LABELS)
    except FileNotFoundError:
        return {}
    uri = folder.file_uri(LABELS)
    if not isinstance(labels, dict) or not all(isinstance(label, str) for label in labels.values()):
        raise UserError(uri, "no class names by object", "{OBJECT: class, ...}", "use this form")
    labels = {one_form(name): label for name, label in labels.items()}
    missing = next((name for name in names if one_form(name) not in labels), None)
    if missing is not None:
        raise UserError(uri, f"no class for {missing}", "a class for each object", "add it, or remove the file")
    return {name: printable_text(one_form(labels[one_form(name)])) for name in names}
