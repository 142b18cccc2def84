"""Multi-view data sets with one folder per object, and cameras as in `soda_dist.data.views.poses`.

An object's number is a hash of its folder's name, so that no task needs a table of all objects; among 100,000 objects
a collision has a probability of 1e-9.
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
from soda_dist.data.formats.published_names import one_form
from soda_dist.data.source import READERS, Row, printable_text
from soda_dist.data.storage.folder import Folder
from soda_dist.data.views.poses import CAMERA_COLUMNS
from soda_dist.errors import UserError

POSE_COLUMNS = (pa.field("object", pa.int64()), *(pa.field(name, kind) for name, kind in CAMERA_COLUMNS.items()))
SPLITS = "splits.json"
TOLERANCE = 1e-3
"""Largest error of R^T R: some published matrices have four decimals."""

Views = TypeVar("Views")
Matrix = NDArray[np.float64]


def object_number(name: str) -> int:
    """63-bit hash of an object's name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


def pose_values(name: str, to_world: Matrix, intrinsics: Matrix) -> dict[str, Any]:
    """`POSE_COLUMNS` of one view of the named object."""
    cameras = (matrix.astype(np.float32).ravel() for matrix in (to_world, intrinsics))
    return {"object": object_number(name), **dict(zip(CAMERA_COLUMNS, cameras, strict=True))}


def pose_problem(to_world: Matrix, *, mirrors: bool = False) -> str | None:
    """Return in a few words why a finite matrix [4, 4] is not a camera-to-world pose, or None.

    Args:
        mirrors: accept a mirrored world, whose rays are just as exact.
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


def read_splits(folder: Folder, names: Sequence[str], seed: int) -> dict[str, Sequence[str]]:
    """Objects per non-empty split, from splits.json (`{"train": [object, ...], ...}`) or else drawn 80/10/10.

    Raises:
        UserError: splits.json has an unknown split or object, or an object in two splits or in none.
    """
    try:
        listed = folder.read_json(SPLITS)
    except FileNotFoundError:
        return {split: objects for split, objects in split_names(names, seed).items() if objects}
    uri, known = folder.file_uri(SPLITS), ", ".join(SHARES)
    if not isinstance(listed, dict) or not all(map(_are_names, listed.values())):
        raise UserError(uri, "no lists of objects by split", '{"train": [object, ...], ...}', "use this form")
    stored = {one_form(name): name for name in names}
    listed = {split: [stored.get(one_form(name), name) for name in objects] for split, objects in listed.items()}
    unknown = next((split for split in listed if split not in SHARES), None)
    if unknown is not None:
        raise UserError(uri, f"split {printable_text(unknown)}", known, "rename it")
    unassigned = set(names)
    for split, objects in listed.items():
        for name in objects:
            if name not in unassigned:
                wrong = "a second time" if name in names else "which has no folder"
                got = f"{printable_text(name)} in {split}, {wrong}"
                raise UserError(uri, got, "each object's folder once", "correct the list")
            unassigned.remove(name)
    if unassigned:
        got = f"no split for {min(unassigned)}"
        raise UserError(uri, got, "all objects in splits", "add it, or remove its folder")
    return {split: sorted(listed[split]) for split in SHARES if listed.get(split)}


def _are_names(objects: Any) -> bool:
    return isinstance(objects, list) and all(isinstance(name, str) for name in objects)


def object_rows(
    index: pa.Table,
    object_of: Callable[[str], str],
    read_views: Callable[[str], Views],
    read_row: Callable[[Mapping[str, Any], Views], Row],
) -> Iterator[Row]:
    """Read the rows of an index object by object, with the images of an object concurrently.

    Args:
        object_of: maps a row's name to its object.
        read_views: reads, once per object, the cameras and other data that its views share.
        read_row: reads a row from its index entry and the result of `read_views`.
    """
    entries = index.to_pylist()
    with ThreadPoolExecutor(READERS) as pool:

        def read(name: str, places: list[int]) -> Iterator[Row]:
            views = read_views(name)
            return pool.map(lambda at: read_row(entries[at], views), places)

        yield from block_records([object_of(entry["name"]) for entry in entries], read)
