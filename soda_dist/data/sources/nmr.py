"""NMR: ShapeNet objects of 13 categories, 24 renderings of 64x64 pixels each, from Neural 3D Mesh Renderer.

NMR_Dataset.zip of Differentiable Volumetric Rendering, or its unpacked folder, interpreted as in DVR, pixelNeRF and SRT
(https://github.com/autonomousvision/differentiable_volumetric_rendering, with a FAQ on the matrices):

    metadata.yaml or metadata.yml            optional, {SYNSET: {id, name}}; default names are the synsets
    SYNSET/softras_{train,val,test}.lst      the splits, one object per line
    SYNSET/OBJECT/image/0000.png ... 0023.png
    SYNSET/OBJECT/cameras.npz                world_mat_I, world to camera, and camera_mat_I of view I

A camera_mat maps the axes x right, y down, z forward to image coordinates in [-1, 1], with the top left pixel's outer
corner at (-1, -1). The world is rotated by (x, -z, y), as in pixelNeRF and SRT, since z is up in all our data sets. The
files' inverse matrices may be missing and are not read.

The .zip (or a .tar with the same files) is read in place. Opening it and listing each split pass over its directory of
over a million members, with some 0.8 kB of memory per member.

Example:
    python jobs/prepare_data.py nmr --source NMR_Dataset.zip --data data/nmr
"""

import io
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from tokenize import TokenError
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import yaml

from soda_dist.data import source as contract
from soda_dist.data.formats.archive import ZIP_ERRORS, Member
from soda_dist.data.formats.camera_folders import POSE_COLUMNS, Matrix, object_rows, pose_problem, pose_values
from soda_dist.data.formats.file_trees import NOWHERE, FolderTree, PlacedTree, Read, open_trees
from soda_dist.data.formats.text_lines import text_lines
from soda_dist.data.shards import Label
from soda_dist.data.source import Contents, Part, Row, Source, UnreadableError, check_image, printable_text, read_row
from soda_dist.data.views.decode import read_header
from soda_dist.errors import UserError

ROOTS, ARCHIVE = ("", "NMR_Dataset/"), "NMR_Dataset.zip"
METADATA = ("metadata.yaml", "metadata.yml")
SPLITS = ("train", "val", "test")
SYNSET = re.compile(r"\d{8}")
OBJECT = re.compile(r"[\w-][\w.-]*")
VIEWS = 24
CAMERAS, IMAGE = "cameras.npz", "/image/"
NPZ_ERRORS = (
    *(*ZIP_ERRORS, zlib.error, RuntimeError, OSError, MemoryError),
    *(ValueError, KeyError, TypeError, AttributeError, SyntaxError, TokenError),
)
"""Raised on damaged bytes by zipfile (RuntimeError: encrypted) and numpy, which parses headers as Python (MemoryError:
a huge array)."""
Z_UP = np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
LAYOUT = f"SYNSET/softras_{{{','.join(SPLITS)}}}.lst and SYNSET/OBJECT/image/0000.png, or {ARCHIVE}"


class Camera(NamedTuple):
    """A view's camera in our axes; intrinsics for image coordinates in [-1, 1]."""

    to_world: Matrix
    intrinsics: Matrix


class Listing(NamedTuple):
    """The data set's `root`, its URI, its categories, and the files of lists and metadata by path below `root`."""

    root: str
    uri: str
    synsets: tuple[str, ...]
    texts: dict[str, Member]


@dataclass(frozen=True)
class Nmr:
    """The data set; `categories` are (synset, name), sorted by synset."""

    tree: PlacedTree
    listing: Listing
    categories: tuple[tuple[str, str], ...]

    @property
    def contents(self) -> Contents:
        labels = {"label": Label(kind="class", names=tuple(name for _, name in self.categories))}
        return Contents.with_labels(labels, "label", *POSE_COLUMNS, rows_per_group=10 * VIEWS)

    def parts(self) -> Sequence[Part]:
        return [Part(split, split) for split in SPLITS]

    def index(self, part: Part) -> pa.Table:
        objects, labels = list[str](), list[int]()
        with self.tree.reader() as read:
            for label, synset in enumerate(self.listing.synsets):
                listed = _read_list(read, self.listing, synset, part.split)
                objects += [f"{synset}/{name}" for name in listed]
                labels += [label] * len(listed)
        names = [f"{name}{IMAGE}{view:04d}.png" for name in objects for view in range(VIEWS)]
        found = _find(self.tree, self.listing.root, [*names, *(f"{name}/{CAMERAS}" for name in objects)])
        places = np.array([(member.offset, member.size) for member in found], np.int64).reshape(-1, 2)
        images, cameras = places[: len(names)], np.repeat(places[len(names) :], VIEWS, 0)
        return pa.table(
            {
                "name": pa.array(names, pa.string()),
                "offset": images[:, 0],
                "size": images[:, 1],
                "cameras_offset": cameras[:, 0],
                "cameras_size": cameras[:, 1],
                "label": np.repeat(np.array(labels, np.int32), VIEWS),
            }
        )

    def rows(self, index: pa.Table) -> Iterator[Row]:
        objects = [name.partition(IMAGE)[0] for name in index["name"].to_pylist()]
        places = zip(index["cameras_offset"].to_pylist(), index["cameras_size"].to_pylist(), strict=True)
        place_of = dict(zip(objects, places, strict=True))
        with self.tree.reader() as read:

            def read_cameras(name: str) -> Sequence[Camera | str]:
                return _cameras(read, Member(f"{self.listing.root}{name}/{CAMERAS}", *place_of[name]))

            def read_view(entry: Mapping[str, Any], cameras: Sequence[Camera | str]) -> Row:
                member = Member(f"{self.listing.root}{entry['name']}", entry["offset"], entry["size"])
                return _row(read, member, entry, cameras)

            yield from object_rows(index, lambda name: name.partition(IMAGE)[0], read_cameras, read_view)


def _cameras(read: Read, member: Member) -> Sequence[Camera | str]:
    """Read each view's camera, or its problem."""
    try:
        with np.load(io.BytesIO(read(member)), allow_pickle=False) as file:
            return [_camera(file, view) for view in range(VIEWS)]
    except FileNotFoundError:
        return [f"no {CAMERAS}"] * VIEWS
    except (UnreadableError, *NPZ_ERRORS):
        return [f"a damaged {CAMERAS}"] * VIEWS


def _row(read: Read, member: Member, entry: Mapping[str, Any], cameras: Sequence[Camera | str]) -> Row:
    name, _, file = entry["name"].partition(IMAGE)
    camera = cameras[int(file.removesuffix(".png"))]
    if isinstance(camera, str):
        return Row(entry["name"], b"", {}, camera)
    row = read_row(entry, lambda _: read(member))
    header = None if row.problem else read_header(row.image)
    if header is None:
        problem = row.problem or check_image(row.image) or "an image that cannot be decoded"
        return row._replace(image=b"", problem=problem)
    half_width, half_height = header.width / 2, header.height / 2
    pixels = np.array([[half_width, 0, half_width], [0, half_height, half_height], [0, 0, 1]])
    posed = pose_values(name, camera.to_world, pixels @ camera.intrinsics)
    return row._replace(columns={"label": entry["label"], **posed})


def _camera(file: Mapping[str, Any], view: int) -> Camera | str:
    found = []
    for key in (f"world_mat_{view}", f"camera_mat_{view}"):
        if key not in file:
            return f"no {key} in {CAMERAS}"
        matrix = np.asarray(file[key], np.float64)
        if matrix.shape not in ((3, 4), (4, 4)) or not np.isfinite(matrix).all():
            return f"{key} of shape {[*matrix.shape]} in {CAMERAS}, or with non-finite numbers"
        found.append(np.vstack([matrix, [0, 0, 0, 1]]) if len(matrix) == 3 else matrix)
    from_world, intrinsics = found
    # The world may be of either handedness: rays and positions are exact in both.
    problem = pose_problem(from_world, mirrors=True)
    if problem:
        return f"{problem} in world_mat_{view} of {CAMERAS}"
    if min(intrinsics[0, 0], intrinsics[1, 1]) <= 0 or (intrinsics[2, :3] != [0, 0, 1]).any():
        return f"no focal lengths and last row 0 0 1 in camera_mat_{view} of {CAMERAS}"
    return Camera(Z_UP @ np.linalg.inv(from_world), intrinsics[:3, :3])


def open_source(uri: str, options: contract.Options) -> Source:
    """Open NMR in the folder or archive `uri`, its folder NMR_Dataset or its NMR_Dataset.zip.

    Raises:
        UserError: no categories, a missing list, or an object in two lists.
    """
    for tree in open_trees(uri, (ARCHIVE,)):
        if not isinstance(tree, PlacedTree):
            raise UserError(tree.uri, "a compressed tar", f"a folder, {ARCHIVE}, or a .tar", "unpack it")
        listing = _list(tree)
        if listing.synsets:
            with tree.reader() as read:
                for synset in listing.synsets:
                    _check_splits(read, listing, synset)
                names = _read_names(read, listing)
            return Nmr(tree, listing, tuple((synset, names.get(synset, synset)) for synset in listing.synsets))
    raise UserError(uri, "no folder SYNSET/", LAYOUT, "correct the path")


def _list(tree: PlacedTree) -> Listing:
    """List the first root with categories. Files of a folder are assumed to exist until they are read."""
    if isinstance(tree, FolderTree):
        root, synsets = "", list[str]()
        for root in ROOTS:
            synsets = [name for name in tree.folders(root) if SYNSET.fullmatch(name)]
            if synsets:
                break
        paths = [*METADATA, *(_list_path(synset, split) for synset in synsets for split in SPLITS)]
        return _listing(tree, root, synsets, {path: Member(root + path, 0, 0) for path in paths})
    found: dict[str, tuple[set[str], dict[str, Member]]] = {root: (set(), {}) for root in ROOTS}
    for member in tree.list_members():
        name = member.name.removeprefix("./")
        root = ROOTS[1] if name.startswith(ROOTS[1]) else ROOTS[0]
        path = name[len(root) :]
        first, slash, rest = path.partition("/")
        found_synsets, texts = found[root]
        if slash and SYNSET.fullmatch(first):
            found_synsets.add(first)
        if path in METADATA or rest.endswith(".lst"):
            texts[path] = member
    root = next((root for root in ROOTS if found[root][0]), "")
    return _listing(tree, root, sorted(found[root][0]), found[root][1])


def _listing(tree: PlacedTree, root: str, synsets: Sequence[str], texts: dict[str, Member]) -> Listing:
    return Listing(root, f"{tree.uri}/{root}".rstrip("/"), tuple(synsets), texts)


def _find(tree: PlacedTree, root: str, names: Sequence[str]) -> Sequence[Member]:
    """Locate files, if they exist, without holding an archive's whole listing."""
    if isinstance(tree, FolderTree):
        return [Member(root + name, 0, 0) for name in names]
    found = dict.fromkeys(names, Member("", NOWHERE, 0))
    for member in tree.list_members():
        name = member.name.removeprefix("./")
        if name.startswith(root) and name[len(root) :] in found:
            found[name[len(root) :]] = member
    return list(found.values())


def _check_splits(read: Read, listing: Listing, synset: str) -> None:
    split_of: dict[str, str] = {}
    for split in SPLITS:
        for name in _read_list(read, listing, synset, split):
            if name in split_of:
                got = f"{name}, which is in {_list_path(synset, split_of[name])} too"
                uri = f"{listing.uri}/{_list_path(synset, split)}"
                raise UserError(uri, got, "each object once", "download it again")
            split_of[name] = split


def _list_path(synset: str, split: str) -> str:
    return f"{synset}/softras_{split}.lst"


def _read_text(read: Read, listing: Listing, path: str) -> bytes | None:
    """Read a list or metadata; None if missing."""
    try:
        return read(listing.texts[path]) if path in listing.texts else None
    except FileNotFoundError:
        return None
    except UnreadableError as error:
        raise UserError(f"{listing.uri}/{path}", error, "a complete file", "download it again") from None


def _read_list(read: Read, listing: Listing, synset: str, split: str) -> list[str]:
    """Read the objects of a list, skipping blank lines."""
    path = _list_path(synset, split)
    data, uri = _read_text(read, listing, path), f"{listing.uri}/{path}"
    if data is None:
        raise UserError(uri, "no such file", LAYOUT, f"use the complete {ARCHIVE}")
    names = text_lines(data, uri)
    wrong = next((name for name in names if not OBJECT.fullmatch(name)), None)
    if wrong is not None:
        raise UserError(uri, f"{wrong[:80]!r}", "folder names", "download it again")
    return names


def _read_names(read: Read, listing: Listing) -> dict[str, str]:
    """Read the first name of each synset from metadata.yaml; empty without the file."""
    found = ((path, _read_text(read, listing, path)) for path in METADATA)
    path, data = next(((path, data) for path, data in found if data is not None), ("", b""))
    if not path:
        return {}
    try:
        # All scalars as text: YAML would parse a bare 03001627 as octal.
        content = yaml.load(data, Loader=yaml.BaseLoader)
        return {synset: printable_text(entry["name"].split(",")[0].strip()) for synset, entry in content.items()}
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, UnicodeDecodeError, RecursionError):
        uri = f"{listing.uri}/{path}"
        raise UserError(uri, "no names by synset", "{SYNSET: {id, name}}", "restore it, or remove it") from None
