"""Results of pieces cached on storage: a cached piece is not computed again."""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from soda_dist.data.storage.folder import Folder
from soda_dist.errors import UserError
from soda_dist.parallel.pool import Pool
from soda_dist.parallel.progress import Progress, Say

VERSION = 2
"""Of the files' content; part of every address."""
DIGITS = 16


class Piece(Protocol):
    """Rows that one file holds."""

    @property
    def file(self) -> str:
        """The file's name, which no other piece of the same folder has."""

    @property
    def rows(self) -> int:
        """Their number."""


Work = TypeVar("Work", bound=Piece)


def address(facts: dict[str, Any]) -> str:
    """Name what depends on `facts` (JSON values) alone: equal facts have equal names."""
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
    """Store `job(state, piece)` of every piece as a file of `folder`, written by its worker; skip cached pieces.

    A file is complete or absent, and the folder's name says what its content depends on, so interrupted work resumes.
    """
    cached = {entry.name for entry in folder.list()}
    todo = [piece for piece in pieces if piece.file not in cached]
    total, left = (sum(piece.rows for piece in some) for some in (pieces, todo))
    if left < total:
        say(f"{what}: reusing {total - left:,} of {total:,} cached images")
    if not todo:
        return
    progress = Progress(say, what, "images", units=lambda piece: piece.rows, done=total - left)
    workers.map(partial(_write, job, folder), todo, progress)


def _write(job: Callable[[Any, Any], pa.Table], folder: Folder, state: Any, piece: Piece) -> None:
    table = job(state, piece)
    if len(table) != piece.rows:
        raise RuntimeError(f"{piece.file} became {len(table)} rows, not {piece.rows}")
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, use_dictionary=False, write_statistics=False, write_page_checksum=True)
    folder.write(piece.file, sink.getvalue())


def load(folder: Folder, piece: Piece, columns: Sequence[str] | None = None) -> pa.Table:
    """Load the rows of a piece that `store` wrote; `columns`: None = all. A damaged file is a `UserError`."""
    with folder.explained(piece.file):
        file = folder.open(piece.file)
        try:
            parquet = pq.ParquetFile(file, page_checksum_verification=True)
            if parquet.metadata.num_rows != piece.rows:
                raise pa.ArrowInvalid(f"{parquet.metadata.num_rows} rows, not {piece.rows}")
            return parquet.read(columns=columns, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            got = f"a damaged file ({(str(error).splitlines() or [''])[0][:120]})"
            raise UserError(folder.file_uri(piece.file), got, "the file as written", "remove it") from None
