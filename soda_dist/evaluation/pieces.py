"""Pieces of a split, and what is read of them."""

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
"""Of the configuration: what a model's initial weights and its views are a function of."""


@dataclass(frozen=True)
class Point:
    """Where a denoiser is read: a layer, and the index of a noise level, 0..T-1."""

    layer: str
    t: int

    def __str__(self) -> str:
        return f"{self.layer} at t = {self.t + 1}"


@dataclass(frozen=True)
class Piece:
    """Consecutive row groups of a split, of whose rows the first `rows` are used."""

    split: str
    groups: tuple[int, ...]
    first_row: int
    """Ordinal of the first row in the split: its key."""
    rows: int
    points: tuple[Point, ...] = ()
    """Where the denoiser is read; none: the encoder's latents."""
    number: int | None = None
    """Of the pass that crops and flips each image anew; none: central views."""

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
    """The first `limit` rows (none: all) as pieces of whole row groups, each of at least `batch` rows but the last.

    The plan does not know of actors, so their number decides no latent.
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
    """The readable rows of a split in the order of keys."""

    split: str
    table: pa.Table
    """The data set's labels, int64 with nulls where there is none."""
    arrays: dict[str, NDArray[Any]]
    """By encoder, [n, D]: float32, pixels uint8."""
    unreadable: list[str]
    """Names of the rows that are left out."""

    def __len__(self) -> int:
        return len(self.table)

    def labels(self, columns: Sequence[str]) -> NDArray[np.int64]:
        """int64 [n, columns].

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
    """A `UserError` for a split that the data set does not have, or has without rows."""
    for which in ("train_split", "test_split"):
        name = getattr(config.evaluation, which)
        filled = [split for split, found in manifest.splits.items() if found.rows]
        if name not in filled:
            raise UserError(f"evaluation.{which}", name, ", ".join(filled), "choose a split with rows")


def shuffled(config: RunConfig, count: int) -> NDArray[np.int64]:
    """0..count-1 in an order that belongs to the run's seed."""
    return np.random.default_rng(mix64(config.seed, PURPOSE, count)).permutation(count)


def object_runs(reader: ShardReader) -> list[tuple[int, int]]:
    """[start, stop) in keys of each object of a split; its rows are neighbours."""
    values = reader.column(OBJECT).to_numpy()
    edges = np.concatenate([[0], 1 + np.flatnonzero(np.diff(values)), [len(values)]]).tolist()
    return list(pairwise(edges))


def rows_at(reader: ShardReader, keys: Sequence[int], columns: Sequence[str]) -> pa.Table:
    """Single rows of a split, by their keys."""
    ends = np.cumsum(reader.groups)
    parts = []
    for key in keys:
        group = int(np.searchsorted(ends, key, side="right"))
        row = key - int(ends[group]) + reader.groups[group]
        parts.append(reader.group(group, columns).slice(row, 1))
    return pa.concat_tables(parts)
