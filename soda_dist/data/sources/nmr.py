"""NMR: ShapeNet objects of 13 categories, 24 renderings of 64x64 pixels each, for neural mesh rendering.

NMR_Dataset.zip of Differentiable Volumetric Rendering, or what it unpacks to, as the readers there, in pixelNeRF and in
SRT take it (https://github.com/autonomousvision/differentiable_volumetric_rendering, with a FAQ on the matrices):

    metadata.yaml or metadata.yml            {SYNSET: {id, name}}; without it synsets are the names
    SYNSET/softras_{train,val,test}.lst      the splits: an object a line
    SYNSET/OBJECT/image/0000.png ... 0023.png
    SYNSET/OBJECT/cameras.npz                world_mat_I, world to camera, and camera_mat_I of view I

A camera_mat maps the axes x right, y down, z forward to image coordinates in [-1, 1], with the top left pixel's outer
corner at (-1, -1). The world is turned by (x, -z, y), as pixelNeRF and SRT turn it: z is up in all our data sets. The
files' inverse matrices are not read, since they may be absent.

The .zip (or a .tar of the same) is read in place. Only listing goes through its whole directory, once to open it and
once for each split: some 0.8 kB of memory and 10 microseconds for each member, of which there are over a million.
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

from soda_dist.data.formats.archive import ZIP_ERRORS, Member
from soda_dist.data.formats.camera_folders import POSED_COLUMNS, Matrix, object_rows, pose_problem, posed_columns
from soda_dist.data.formats.file_trees import NOWHERE, FolderTree, PlacedTree, Read, open_trees
from soda_dist.data.shards import Label
from soda_dist.data.source import Contents, Options, Part, Row, Source, UnreadableError, check_image, printable_text
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
"""Of damaged bytes: what zipfile raises (RuntimeError of encrypted ones), and numpy, whose headers are texts of
Python's; MemoryError of an array that its header calls huge."""
Z_UP = np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
LAYOUT = f"SYNSET/softras_{{{','.join(SPLITS)}}}.lst and SYNSET/OBJECT/image/0000.png, or {ARCHIVE}"


class Camera(NamedTuple):
    """Of a view, in our axes; intrinsics for image coordinates in [-1, 1]."""

    to_world: Matrix
    intrinsics: Matrix


class Texts(NamedTuple):
    """Below `root`, which messages name as `uri`: the categories, and where lists and metadata are, by path."""

    root: str
    uri: str
    synsets: tuple[str, ...]
    places: dict[str, Member]


@dataclass(frozen=True)
class Nmr:
    """The categories that are there, (synset, name), by synset."""

    tree: PlacedTree
    texts: Texts
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
        return [Part(split, split) for split in SPLITS]

    def index(self, part: Part) -> pa.Table:
        objects, labels = list[str](), list[int]()
        with self.tree.reader() as read:
            for label, synset in enumerate(self.texts.synsets):
                listed = _listed(read, self.texts, synset, part.split)
                objects += [f"{synset}/{name}" for name in listed]
                labels += [label] * len(listed)
        names = [f"{name}{IMAGE}{view:04d}.png" for name in objects for view in range(VIEWS)]
        found = _find(self.tree, self.texts.root, [*names, *(f"{name}/{CAMERAS}" for name in objects)])
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
                return _cameras(read, Member(f"{self.texts.root}{name}/{CAMERAS}", *place_of[name]))

            def read_row(entry: Mapping[str, Any], cameras: Sequence[Camera | str]) -> Row:
                member = Member(f"{self.texts.root}{entry['name']}", entry["offset"], entry["size"])
                return _row(read, member, entry, cameras)

            yield from object_rows(index, lambda name: name.partition(IMAGE)[0], read_cameras, read_row)


def _cameras(read: Read, member: Member) -> Sequence[Camera | str]:
    """Each view's camera, or what is wrong with it."""
    try:
        with np.load(io.BytesIO(read(member)), allow_pickle=False) as file:
            return [_camera(file, view) for view in range(VIEWS)]
    except FileNotFoundError:
        return [f"no {CAMERAS}"] * VIEWS
    except (UnreadableError, *NPZ_ERRORS):
        return [f"{CAMERAS}, which is not a whole file of matrices"] * VIEWS


def _row(read: Read, member: Member, entry: Mapping[str, Any], cameras: Sequence[Camera | str]) -> Row:
    name, _, file = entry["name"].partition(IMAGE)
    camera = cameras[int(file.removesuffix(".png"))]
    if isinstance(camera, str):
        return Row(entry["name"], b"", {}, camera)
    try:
        data = read(member)
    except FileNotFoundError:
        return Row(entry["name"], b"", {}, "a missing file")
    except UnreadableError as error:
        return Row(entry["name"], b"", {}, str(error))
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
    """NMR in the folder or archive `uri`, in its NMR_Dataset, or in the NMR_Dataset.zip there.

    Raises:
        UserError: no categories, a list that is missing, or an object that two lists have.
    """
    for tree in open_trees(uri, (ARCHIVE,)):
        if not isinstance(tree, PlacedTree):
            raise UserError(tree.uri, "a compressed tar", f"a folder, {ARCHIVE}, or a .tar", "unpack it")
        texts = _texts(tree)
        if texts.synsets:
            with tree.reader() as read:
                for synset in texts.synsets:
                    _check_splits(read, texts, synset)
                names = _names(read, texts)
            return Nmr(tree, texts, tuple((synset, names.get(synset, synset)) for synset in texts.synsets))
    raise UserError(uri, "no folder SYNSET/", LAYOUT, "correct the path")


def _texts(tree: PlacedTree) -> Texts:
    """Of the first root that has categories. A folder's files are taken to be there until they are read."""
    if isinstance(tree, FolderTree):
        root, synsets = "", list[str]()
        for root in ROOTS:
            synsets = [name for name in tree.folders(root) if SYNSET.fullmatch(name)]
            if synsets:
                break
        paths = [*METADATA, *(_list(synset, split) for synset in synsets for split in SPLITS)]
        return _below(tree, root, synsets, {path: Member(root + path, 0, 0) for path in paths})
    found: dict[str, tuple[set[str], dict[str, Member]]] = {root: (set(), {}) for root in ROOTS}
    for member in tree.list_members():
        name = member.name.removeprefix("./")
        root = ROOTS[1] if name.startswith(ROOTS[1]) else ROOTS[0]
        path = name[len(root) :]
        first, slash, rest = path.partition("/")
        synsets_there, places = found[root]
        if slash and SYNSET.fullmatch(first):
            synsets_there.add(first)
        if path in METADATA or rest.endswith(".lst"):
            places[path] = member
    root = next((root for root in ROOTS if found[root][0]), "")
    return _below(tree, root, sorted(found[root][0]), found[root][1])


def _below(tree: PlacedTree, root: str, synsets: Sequence[str], places: dict[str, Member]) -> Texts:
    return Texts(root, f"{tree.uri}/{root}".rstrip("/"), tuple(synsets), places)


def _find(tree: PlacedTree, root: str, names: Sequence[str]) -> Sequence[Member]:
    """Where files lie, if they are there; of an archive no others are held."""
    if isinstance(tree, FolderTree):
        return [Member(root + name, 0, 0) for name in names]
    found = dict.fromkeys(names, Member("", NOWHERE, 0))
    for member in tree.list_members():
        name = member.name.removeprefix("./")
        if name.startswith(root) and name[len(root) :] in found:
            found[name[len(root) :]] = member
    return list(found.values())


def _check_splits(read: Read, texts: Texts, synset: str) -> None:
    split_of: dict[str, str] = {}
    for split in SPLITS:
        for name in _listed(read, texts, synset, split):
            if name in split_of:
                other = f"{name}, which is in {_list(synset, split_of[name])} too"
                raise UserError(_uri(texts, _list(synset, split)), other, "each object once", "download it again")
            split_of[name] = split


def _list(synset: str, split: str) -> str:
    return f"{synset}/softras_{split}.lst"


def _uri(texts: Texts, path: str) -> str:
    return f"{texts.uri}/{path}"


def _text(read: Read, texts: Texts, path: str) -> bytes | None:
    """None if it is missing."""
    try:
        return read(texts.places[path]) if path in texts.places else None
    except FileNotFoundError:
        return None
    except UnreadableError as error:
        raise UserError(_uri(texts, path), error, "a whole file", "download it again") from None


def _listed(read: Read, texts: Texts, synset: str, split: str) -> list[str]:
    """The objects of a list, without blank lines."""
    path = _list(synset, split)
    data, uri = _text(read, texts, path), _uri(texts, path)
    if data is None:
        raise UserError(uri, "no such file", LAYOUT, f"take all of {ARCHIVE}")
    names = data.decode(errors="replace").split()
    wrong = next((name for name in names if not OBJECT.fullmatch(name)), None)
    if wrong is not None:
        raise UserError(uri, f"{wrong[:80]!r}", "names of folders", "download it again")
    return names


def _names(read: Read, texts: Texts) -> dict[str, str]:
    """The name of each synset in metadata.yaml: the first of those that it lists. Empty without the file."""
    found = ((path, _text(read, texts, path)) for path in METADATA)
    path, data = next(((path, data) for path, data in found if data is not None), ("", b""))
    if not path:
        return {}
    try:
        # All scalars are read as text: of a bare 03001627, YAML would make an octal number.
        content = yaml.load(data, Loader=yaml.BaseLoader)
        return {synset: printable_text(entry["name"].split(",")[0].strip()) for synset, entry in content.items()}
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, UnicodeDecodeError, RecursionError):
        raise UserError(
            _uri(texts, path), "no names by synset", "{SYNSET: {id, name}}", "restore it, or remove it"
        ) from None
