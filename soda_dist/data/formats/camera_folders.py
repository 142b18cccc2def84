"""Images with cameras, a folder an object: what the importers of multi-view sets share.

Cameras are those of `soda_dist.data.views.poses`. An object's number is a hash of its folder's name, so that no task
needs a table of all objects: two of a hundred thousand agree with a probability of 1e-9.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from soda_dist.data.formats.fixed_records import block_records
from soda_dist.data.formats.hashed_splits import SHARES, split_names
from soda_dist.data.source import READERS, Row, sound_text
from soda_dist.data.storage.folder import Folder
from soda_dist.data.views.poses import CAMERA_COLUMNS
from soda_dist.errors import UserError

POSED_COLUMNS = (pa.field("object", pa.int64()), *(pa.field(name, kind) for name, kind in CAMERA_COLUMNS.items()))
SPLITS = "splits.json"
TOLERANCE = 1e-3
"""Of the elements of a rotation times its transpose: matrices are found that were written with four decimals."""

Views = TypeVar("Views")
Matrix = NDArray[np.float64]


def object_number(name: str) -> int:
    """63 bits that stand for an object's name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


def posed_columns(name: str, to_world: Matrix, intrinsics: Matrix) -> dict[str, Any]:
    """`POSED_COLUMNS` of one view of the object of this name."""
    cameras = (matrix.astype(np.float32).ravel() for matrix in (to_world, intrinsics))
    return {"object": object_number(name), **dict(zip(CAMERA_COLUMNS, cameras, strict=True))}


def pose_problem(to_world: Matrix, *, mirrors: bool = False) -> str | None:
    """Why a matrix [4, 4] of finite numbers places no camera: a few words.

    Args:
        mirrors: whether the world may be mirrored: its rays are as exact.
    """
    rotation = to_world[:3, :3]
    if np.abs(to_world[3] - [0, 0, 0, 1]).max() > TOLERANCE:
        return f"a last row of {_shown(to_world[3])}, not 0 0 0 1"
    if np.abs(rotation.T @ rotation - np.eye(3)).max() > TOLERANCE:
        return f"no rotation (axes of lengths {_shown(np.linalg.norm(rotation, axis=0))}, or not at right angles)"
    if not mirrors and np.linalg.det(rotation) < 0:
        return "a mirror image of a rotation (determinant -1)"
    return None


def _shown(numbers: Matrix) -> str:
    return " ".join(f"{number:.4g}" for number in numbers)


def object_splits(folder: Folder, names: Sequence[str], seed: int) -> dict[str, Sequence[str]]:
    """The objects of each split: those that splits.json lists, `{"train": [object, ...], ...}`; without it 80/10/10.

    Splits without objects are left out.

    Raises:
        UserError: of splits.json: other splits, an object that is not there, in two splits or in none.
    """
    try:
        listed = folder.read_json(SPLITS)
    except FileNotFoundError:
        return {split: objects for split, objects in split_names(names, seed).items() if objects}
    uri, known = folder.file_uri(SPLITS), ", ".join(SHARES)
    if not isinstance(listed, dict) or not all(map(_are_names, listed.values())):
        raise UserError(uri, "no lists of objects by split", '{"train": [object, ...], ...}', "write it so")
    unknown = next((split for split in listed if split not in SHARES), None)
    if unknown is not None:
        raise UserError(uri, f"split {sound_text(unknown)}", known, "rename it")
    left = set(names)
    for split, objects in listed.items():
        for name in objects:
            if name not in left:
                wrong = "and a second time" if name in names else "which has no folder"
                got = f"{sound_text(name)} in {split}, {wrong}"
                raise UserError(uri, got, "each object's folder once", "correct the list")
            left.remove(name)
    if left:
        raise UserError(uri, f"no split for {min(left)}", "all objects in splits", "add it, or remove its folder")
    return {split: sorted(listed[split]) for split in SHARES if listed.get(split)}


def _are_names(objects: Any) -> bool:
    return isinstance(objects, list) and all(isinstance(name, str) for name in objects)


def object_rows(
    index: pa.Table,
    object_of: Callable[[str], str],
    read_views: Callable[[str], Views],
    read_row: Callable[[Mapping[str, Any], Views], Row],
) -> Iterator[Row]:
    """The rows of an index, object by object: what an object has for all its views is read once, images several at a
    time.

    Args:
        object_of: the object of a row's name.
        read_views: cameras and whatever else an object's views share, or what is wrong with them.
        read_row: one row from its index entry and that.
    """
    entries = index.to_pylist()
    with ThreadPoolExecutor(READERS) as pool:

        def read(name: str, places: list[int]) -> Iterator[Row]:
            views = read_views(name)
            return pool.map(lambda at: read_row(entries[at], views), places)

        yield from block_records([object_of(entry["name"]) for entry in entries], read)
