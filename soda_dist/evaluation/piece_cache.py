"""Pieces of work whose results stay on storage: a piece that is there is not done again."""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from soda_dist.data.storage.folder import Folder
from soda_dist.parallel.pool import Pool
from soda_dist.parallel.progress import Progress, Say

VERSION = 1
"""Of what the files hold; another one is another address."""
DIGITS = 16


class Piece(Protocol):
    """Rows that one file holds."""

    @property
    def file(self) -> str:
        """The file's name, which no other piece of the same folder has."""

    @property
    def rows(self) -> int:
        """How many there are."""


Work = TypeVar("Work", bound=Piece)


def address(facts: dict[str, Any]) -> str:
    """A name for what depends on `facts` (JSON values) alone: equal facts have equal names."""
    text = json.dumps({"version": VERSION, **facts}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def store(
    workers: Pool,
    folder: Folder,
    job: Callable[[Any, Any], pa.Table],
    pieces: Sequence[Work],
    say: Say,
    what: str,
) -> None:
    """`job(state, piece)` of every piece is a file of `folder` afterwards, written by the worker that did it.

    What is there already is not done again: a file is complete or absent, and the folder's name says what it depends
    on, so that work which was stopped, or lost actors, goes on where it was.
    """
    there = {entry.name for entry in folder.list()}
    todo = [piece for piece in pieces if piece.file not in there]
    total, left = (sum(piece.rows for piece in some) for some in (pieces, todo))
    if left < total:
        say(f"{what}: {total - left:,} of {total:,} images are there from before")
    if not todo:
        return
    progress = Progress(say, what, "images", units=lambda piece: piece.rows, done=total - left)
    workers.map(partial(_write, job, folder), todo, progress)


def _write(job: Callable[[Any, Any], pa.Table], folder: Folder, state: Any, piece: Piece) -> None:
    table = job(state, piece)
    if len(table) != piece.rows:
        raise RuntimeError(f"{piece.file} came to {len(table)} rows in place of {piece.rows}")
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, use_dictionary=False, write_statistics=False, write_page_checksum=True)
    folder.write(piece.file, sink.getvalue())


def load(folder: Folder, piece: Piece, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of a piece that `store` has written; `columns` none: all of them."""
    with folder.explained(piece.file):
        table = pq.read_table(
            folder.open(piece.file), columns=columns, use_threads=False, page_checksum_verification=True
        )
    if len(table) != piece.rows:
        raise RuntimeError(f"{folder.file_uri(piece.file)} holds {len(table)} rows in place of {piece.rows}")
    return table
