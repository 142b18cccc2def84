"""Pieces of a split as jobs read them, and the features that come of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from soda_dist.config.schema import RunConfig
from soda_dist.data.relations import OBJECT
from soda_dist.data.shards import Manifest, ShardReader
from soda_dist.errors import UserError
from soda_dist.evaluation.views import PURPOSE
from soda_dist.training.randomness import mix64

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
    """Consecutive row groups of a split, of which the first `rows` rows are used.

    Attributes:
        first_row: ordinal of the first row in the split, which is its key.
        points: where the denoiser is read; empty = the encoder's latents.
        number: of the augmented pass; None = central views.
    """

    split: str
    groups: tuple[int, ...]
    first_row: int
    rows: int
    points: tuple[Point, ...] = ()
    number: int | None = None

    @property
    def file(self) -> str:
        """The piece's name on storage."""
        place = f"{self.first_row:010d}-{self.rows}.parquet"
        return place if self.number is None else f"pass-{self.number:04d}-{place}"


def plan_pieces(
    split: str,
    groups: Sequence[int],
    limit: int | None,
    batch: int,
    points: tuple[Point, ...] = (),
) -> list[Piece]:
    """Cut the first `limit` rows (None = all) into whole row groups, each piece of at least `batch` rows but the last.

    The plan does not depend on the workers, so no latent does.
    """
    total = sum(groups) if limit is None else min(limit, sum(groups))
    pieces: list[Piece] = []
    start = first = 0
    row = 0
    for number, rows in enumerate(groups):
        row += rows
        if row - first >= batch or row >= total:
            pieces.append(Piece(split, tuple(range(start, number + 1)), first, min(row, total) - first, points))
            start, first = number + 1, row
        if row >= total:
            break
    return pieces


@dataclass(frozen=True)
class Features:
    """The readable rows of a split in the order of keys.

    Attributes:
        table: the data set's labels, int64, null where a row has none.
        arrays: by encoder, [n, D]: float32; pixels uint8.
        unreadable: names of the rows that are left out.
    """

    split: str
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


def shuffled(config: RunConfig, count: int) -> NDArray[np.int64]:
    """Permute 0..count-1 by the run's seed."""
    return np.random.default_rng(mix64(config.seed, PURPOSE, count)).permutation(count)


def object_runs(reader: ShardReader) -> list[tuple[int, int]]:
    """Find [start, stop) in keys of each object of a split; its rows are neighbours."""
    values = reader.column(OBJECT).to_numpy()
    edges = np.concatenate([[0], 1 + np.flatnonzero(np.diff(values)), [len(values)]]).tolist()
    return list(pairwise(edges))


def rows_at(reader: ShardReader, keys: Sequence[int], columns: Sequence[str]) -> pa.Table:
    """Read single rows of a split by their keys."""
    ends = np.cumsum(reader.groups)
    parts = []
    for key in keys:
        group = int(np.searchsorted(ends, key, side="right"))
        row = key - int(ends[group]) + reader.groups[group]
        parts.append(reader.group(group, columns).slice(row, 1))
    return pa.concat_tables(parts)
