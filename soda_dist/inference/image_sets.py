"""Images to embed: a tree of files, or a split of prepared data, cut into pieces for the workers of a pool."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, Protocol

import pyarrow as pa

from soda_dist.data.formats.archive import Member
from soda_dist.data.formats.file_trees import IMAGE_ENDINGS, FolderTree, Tree, file_index, folder_of, open_tree
from soda_dist.data.formats.listing import refuse_repeats
from soda_dist.data.shards import MANIFEST, Manifest, ShardReader, check_shards, read_manifest
from soda_dist.data.source import Row, read_row
from soda_dist.data.storage.folder import Folder
from soda_dist.errors import UserError
from soda_dist.evaluation.pieces import Piece, plan_pieces
from soda_dist.evaluation.worker import rows_of
from soda_dist.parallel.progress import Say

LEAST_ROWS, MOST_ROWS, PIECE_BYTES = 32, 1024, 8 << 20
"""Images of a piece, which is lost if its worker is killed: about PIECE_BYTES of files, within these bounds."""


class Read(NamedTuple):
    """Images that were read together.

    Attributes:
        table: `image`, and the cameras' columns where wanted; no bytes where there is a problem.
        problems: why an image could not be read; None = it was, though it may not decode.
    """

    names: list[str]
    table: pa.Table
    problems: list[str | None]


class Reader(Protocol):
    """Reads pieces; small enough to be sent to every worker."""

    def read(self, piece: Any, size: int) -> Iterator[Read]:
        """Yield the images of a piece in order, up to `size` at a time."""


@dataclass(frozen=True)
class FilePiece:
    """Files of a tree."""

    number: int
    members: tuple[Member, ...]

    @property
    def rows(self) -> int:
        return len(self.members)

    @property
    def file(self) -> str:
        return f"{self.number:06d}-{self.rows}.parquet"


@dataclass(frozen=True)
class Files:
    """Reader of a tree's files."""

    tree: Tree

    def read(self, piece: FilePiece, size: int) -> Iterator[Read]:
        rows = self._rows(file_index(piece.members))
        while some := list(islice(rows, size)):
            table = pa.table({"image": pa.array([row.image for row in some], pa.binary())})
            yield Read([row.name for row in some], table, [row.problem for row in some])

    def _rows(self, index: pa.Table) -> Iterator[Row]:
        """Read the files in order; those of a disk one by one, which for small files is faster than by threads."""
        if not isinstance(self.tree, FolderTree) or not self.tree.folder.is_local:
            yield from self.tree.rows(index, [])
            return
        with self.tree.reader() as read:
            for entry in index.to_pylist():
                yield read_row(entry, lambda each: read(Member(**each)))


@dataclass(frozen=True)
class Rows:
    """Reader of a split of prepared data, with these columns beside name and image."""

    shards: ShardReader
    columns: tuple[str, ...]

    def read(self, piece: Piece, size: int) -> Iterator[Read]:
        table = rows_of(self.shards, piece, ["name", "image", *self.columns])
        for at in range(0, len(table), size):
            some = table.slice(at, size)
            yield Read(some["name"].to_pylist(), some.drop_columns(["name"]), [None] * len(some))


class ImageSet(NamedTuple):
    """Images to embed.

    Attributes:
        reader: for the workers.
        pieces: all images in order, each a piece of `piece_cache.store`.
        facts: what the result depends on, as JSON.
    """

    reader: Reader
    pieces: Sequence[Any]
    facts: dict[str, Any]

    @property
    def rows(self) -> int:
        """Number of images."""
        return sum(piece.rows for piece in self.pieces)


def open_images(uri: str, split: str | None, columns: tuple[str, ...], say: Say) -> ImageSet:
    """List the images at `uri`: a folder or an archive of image files, or a prepared data set.

    Args:
        split: of prepared data; None = its only one.
        columns: of prepared data that the encoder needs beside the image: a camera's.

    Raises:
        UserError: no images, a file that links list twice, an unknown split, or files where columns are needed.
    """
    tree = open_tree(uri)
    folder = folder_of(tree)
    if folder is not None and folder.exists(MANIFEST):
        return _prepared(folder, split, columns)
    if split is not None:
        raise UserError("--split", f"{split} with {uri}", "a split of prepared data", "leave it out")
    if columns:
        allowed = "a prepared data set with cameras"
        raise UserError("--images", f"{uri}, files without the cameras that the encoder takes", allowed, "prepare them")
    found = tree.files()
    members = [member for member in found if member.name.lower().endswith(IMAGE_ENDINGS)]
    if not members:
        got = f"{tree.uri}, which has {len(found)} files and no image among them" if found else f"{tree.uri}, no files"
        raise UserError("--images", got, f"files that end in {', '.join(IMAGE_ENDINGS)}", "check the URI")
    if folder is not None:
        refuse_repeats(folder, [member.name for member in members])
    if len(found) > len(members):
        other = next(member.name for member in found if not member.name.lower().endswith(IMAGE_ENDINGS))
        say(f"left out: {len(found) - len(members):,} files that are not named as images, such as {other}")
    size = _rows_of_a_piece(len(members), sum(member.size for member in members))
    pieces = [FilePiece(at // size, tuple(members[at : at + size])) for at in range(0, len(members), size)]
    return ImageSet(Files(tree), pieces, {"files": _digest(members), "rows": size})


def _prepared(folder: Folder, split: str | None, columns: tuple[str, ...]) -> ImageSet:
    manifest = read_manifest(folder)
    name = _chosen(manifest, split)
    check_shards(folder, manifest, name)
    shards = ShardReader(folder, manifest, name)
    have = shards.schema().names
    if lacking := [column for column in columns if column not in have]:
        raise UserError(
            "--images", f"{folder.uri} without {lacking[0]}", "data with cameras", "choose another data set"
        )
    stored = manifest.split(name)
    rows = _rows_of_a_piece(stored.rows, sum(shard.bytes for shard in stored.shards))
    pieces = plan_pieces(name, shards.groups, None, rows)
    facts = {"shards": [shard.sha256 for shard in stored.shards], "rows": rows}
    return ImageSet(Rows(shards, columns), pieces, facts)


def _chosen(manifest: Manifest, split: str | None) -> str:
    filled = [name for name, found in manifest.splits.items() if found.rows]
    if split is None and len(filled) == 1:
        return filled[0]
    if split not in filled:
        got = "nothing" if split is None else split
        raise UserError("--split", got, ", ".join(filled) or "none: the data is empty", "choose one of them")
    return split


def _rows_of_a_piece(rows: int, size: int) -> int:
    return min(MOST_ROWS, max(LEAST_ROWS, PIECE_BYTES * rows // max(1, size)))


def _digest(members: Sequence[Member]) -> str:
    """SHA-256 over names, places and sizes."""
    whole = hashlib.sha256()
    for member in members:
        whole.update(f"{member.name}\0{member.offset} {member.size}\n".encode())
    return whole.hexdigest()
