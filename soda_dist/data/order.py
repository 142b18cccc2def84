"""Order of rows in training: a pure function of (seed, position), for any number of workers.

A position counts samples since the start of the run. Epoch = position // N; each epoch is a permutation of the N rows,
and batches continue across its end. A full shuffle would fetch a row group per row. Instead, row groups are shuffled,
each `mix` of them form a window, and rows are shuffled within their group and dealt in lanes: every batch takes the
same share of each group, always at the same place in the batch. So a worker that takes the same slice of every batch
reads only its own lanes, completely. Rows must be mixed when shards are written: sorted by class, batches would hold
few classes. docs/performance.md has measurements of fetched rows and of mixing.

Our reading of "data is shuffled at training time" (section D.2).
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from soda_dist.data.views.addressed import Ints, words
from soda_dist.errors import UserError

EPOCHS_CACHED, WINDOWS_CACHED = 4, 32


class RowLocations(NamedTuple):
    """Epoch and row of n positions."""

    epoch: Ints
    """int64 [n]."""
    group: Ints
    """int64 [n]: row group of the split, numbered in shard order."""
    row: Ints
    """int64 [n]: row within the group."""


class Window(NamedTuple):
    """Positions start..stop-1, all in the same `mix` row groups."""

    start: int
    stop: int


class Order:
    """Order of a run. Immutable and picklable; recent windows are cached per process.

    Args:
        groups: number of rows of each row group of the split.
        batch: global batch size, best a multiple of `mix`.
        mix: row groups per window.

    Raises:
        UserError: the split has no rows.
    """

    def __init__(self, groups: Sequence[int], seed: int, batch: int, mix: int) -> None:
        self.seed, self.batch, self.mix = seed, batch, mix
        self.groups = np.asarray(groups, np.int64)
        self.rows = int(self.groups.sum())
        if self.rows == 0:
            raise UserError("data.train_split", "0 rows", ">= 1 row", "prepare the data again or name another split")
        self._first_row = np.cumsum(self.groups) - self.groups
        self._epoch = lru_cache(maxsize=EPOCHS_CACHED)(self._make_epoch)
        self._window = lru_cache(maxsize=WINDOWS_CACHED)(self._make_window)

    def __reduce__(self) -> tuple[type["Order"], tuple[list[int], int, int, int]]:
        return Order, (self.groups.tolist(), self.seed, self.batch, self.mix)

    def locate(self, start: int, stop: int) -> RowLocations:
        """Return epoch, row group and row of positions start..stop-1."""
        parts = []
        for epoch, number, low, high in self._segments(start, stop):
            group, row = self._window(epoch, number)
            parts.append((np.full(high - low, epoch), group[low:high], row[low:high]))
        if not parts:
            return RowLocations(*(np.zeros(0, np.int64) for _ in range(3)))
        return RowLocations(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def key(self, group: Ints, row: Ints) -> Ints:
        """Return keys (row numbers in the split), int64 [n]."""
        return self._first_row[group] + row

    def find(self, keys: Ints) -> tuple[Ints, Ints]:
        """Return row group and row within it, int64 [n] each: the inverse of `key`."""
        group = np.searchsorted(self._first_row, keys, side="right") - 1
        return group, keys - self._first_row[group]

    def windows(self, start: int, stop: int) -> list[Window]:
        """Split start..stop-1 at window boundaries, so that consecutive read tasks fetch no row group twice."""
        cuts = []
        for _, _, low, high in self._segments(start, stop):
            cuts.append(Window(start, start + high - low))
            start += high - low
        return cuts

    def _segments(self, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield (epoch, window, low, high): places low..high-1 of one window."""
        while start < stop:
            epoch, place = divmod(start, self.rows)
            # An epoch may start within a batch. Rotating its sequence aligns windows with batches: it begins with the
            # part of the last window that fills no whole batch.
            place = (place + epoch * self.rows % -self.batch) % self.rows
            starts = self._epoch(epoch)[1]
            number = bisect_right(starts, place) - 1
            low = place - starts[number]
            count = min(stop - start, starts[number + 1] - place, self.rows - start % self.rows)
            yield epoch, number, low, low + count
            start += count

    def _make_epoch(self, epoch: int) -> tuple[Ints, list[int]]:
        """Permute the groups, short ones last; return them with the starts of the windows, and N."""
        ids = np.arange(len(self.groups))
        rank = words(self.seed, "order/groups", epoch, ids, range(1))[:, 0]
        permuted = np.lexsort((rank, self.groups < self.groups.max()))
        ends = np.cumsum(self.groups[permuted])
        starts = ends[self.mix - 1 :: self.mix].tolist()
        return permuted, [0, *(end for end in starts if end < self.rows), self.rows]

    def _make_window(self, epoch: int, number: int) -> tuple[Ints, Ints]:
        """Return group and row of each place of a window: rows sorted by (j // c, lane, j % c).

        Lane is the group's place in the window, j the row's place in its permuted group, c a group's rows per batch.
        """
        ids = self._epoch(epoch)[0][number * self.mix : (number + 1) * self.mix]
        sizes = self.groups[ids]
        lane = np.repeat(np.arange(len(ids)), sizes)
        row = np.arange(len(lane)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        rank = words(self.seed, "order/rows", epoch, self._first_row[ids][lane] + row, range(1))[:, 0]
        row = row[np.lexsort((rank, lane))]
        place = np.arange(len(lane)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        share = max(1, self.batch // self.mix)
        dealt = np.lexsort((place, lane, place // share))
        return ids[lane][dealt], row[dealt]
