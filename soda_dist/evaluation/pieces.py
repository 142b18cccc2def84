"""Pieces of a split as jobs read them, and the features that come of them."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from soda_dist.config.schema import RunConfig
from soda_dist.data.relations import OBJECT
from soda_dist.data.shards import Manifest, ShardReader
from soda_dist.errors import UserError
from soda_dist.evaluation.piece_cache import address

MODEL_SECTIONS = (
    "seed",
    "method",
    "data",
    "encoder",
    "aggregation",
    "pose",
    "denoiser",
    "diffusion",
)
"""Sections of the configuration that decide a model's initial weights and its views."""


@dataclass(frozen=True)
class Point:
    """Where a denoiser is read: a layer, and the index of a noise level, 0..T-1."""

    layer: str
    t: int

    def __str__(self) -> str:
        return f"{self.layer} at t = {self.t + 1}"


@dataclass(frozen=True)
class Piece:
    """Rows of a split that a job reads at once.

    Attributes:
        groups: row groups that hold them.
        first_row: ordinal of the first one in the split, which is its key.
        rows: their number.
        points: where the denoiser is read; empty = the encoder's latents.
        number: of the augmented pass; None = central views.
        chosen: ordinals of the rows, ascending; None = all rows of `groups`, which are consecutive.
    """

    split: str
    groups: tuple[int, ...]
    first_row: int
    rows: int
    points: tuple[Point, ...] = ()
    number: int | None = None
    chosen: tuple[int, ...] | None = None

    @property
    def keys(self) -> NDArray[np.int64]:
        """Keys of the rows, int64 [rows]."""
        if self.chosen is None:
            return np.arange(self.first_row, self.first_row + self.rows)
        return np.array(self.chosen, np.int64)

    @property
    def file(self) -> str:
        """The piece's name on storage."""
        place = f"{self.first_row:010d}-{self.rows}"
        if self.chosen is not None:
            place += f"-{address({'rows': self.chosen})}"
        return f"{place}.parquet" if self.number is None else f"pass-{self.number:04d}-{place}.parquet"


def plan_pieces(
    split: str,
    groups: Sequence[int],
    drawn: NDArray[np.int64] | None,
    batch: int,
    points: tuple[Point, ...] = (),
) -> list[Piece]:
    """Cut the `drawn` rows (ascending; None = all) at row groups into pieces of at least `batch` rows but the last.

    Row groups without a drawn row are not read. The plan does not depend on the workers, so no latent does.
    """
    if drawn is None or len(drawn) == sum(groups):
        drawn = None
        counts = list(groups)
    else:
        place = np.searchsorted(np.cumsum(groups), drawn, side="right")
        counts = np.bincount(place, minlength=len(groups)).tolist()
    used = [number for number, rows in enumerate(counts) if rows]
    pieces: list[Piece] = []
    taken: list[int] = []
    first = row = 0
    for number in used:
        taken.append(number)
        row += counts[number]
        if row - first >= batch or number == used[-1]:
            chosen = None if drawn is None else tuple(drawn[first:row].tolist())
            start = first if chosen is None else chosen[0]
            pieces.append(Piece(split, tuple(taken), start, row - first, points, chosen=chosen))
            taken, first = [], row
    return pieces


@dataclass(frozen=True)
class Features:
    """The readable rows of a split in the order of keys.

    Attributes:
        keys: int64 [n].
        table: the data set's labels, int64, null where a row has none.
        arrays: by encoder, [n, D]: float32; pixels uint8.
        unreadable: names of the rows that are left out.
    """

    split: str
    keys: NDArray[np.int64]
    table: pa.Table
    arrays: dict[str, NDArray[Any]]
    unreadable: list[str]

    def __len__(self) -> int:
        return len(self.table)

    def labels(self, columns: Sequence[str]) -> NDArray[np.int64]:
        """Return the labels of these columns, int64 [n, columns].

        Raises:
            UserError: a row without a value.
        """
        found = []
        for name in columns:
            column = self.table.column(name)
            if column.null_count:
                got = f"{column.null_count} rows of split {self.split} without a value"
                raise UserError(name, got, "a value in every row", "evaluate another label or split")
            found.append(column.to_numpy())
        return np.stack(found, axis=1)


def check_splits(manifest: Manifest, config: RunConfig) -> None:
    """Raise a `UserError` for a split that the data set lacks or that has no rows."""
    for which in ("train_split", "test_split"):
        name = getattr(config.evaluation, which)
        filled = [split for split, found in manifest.splits.items() if found.rows]
        if name not in filled:
            raise UserError(f"evaluation.{which}", name, ", ".join(filled), "choose a split with rows")


def object_runs(reader: ShardReader) -> list[tuple[int, int]]:
    """Find [start, stop) in keys of each object of a split; its rows are neighbours."""
    values = reader.column(OBJECT).to_numpy()
    edges = np.concatenate([[0], 1 + np.flatnonzero(np.diff(values)), [len(values)]]).tolist()
    return list(pairwise(edges))


def rows_at(reader: ShardReader, keys: Sequence[int], columns: Sequence[str]) -> pa.Table:
    """Read single rows of a split by their keys, in this order."""
    ends = [*accumulate(reader.groups)]
    parts = []
    for group, some in groupby(keys, key=lambda key: bisect_right(ends, key)):
        start = ends[group] - reader.groups[group]
        parts.append(reader.group(group, columns).take([key - start for key in some]))  # a copy, not the whole group
    return pa.concat_tables(parts)
