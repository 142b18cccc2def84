"""Which row comes when: a pure function of (seed, position), for any number of workers.

A position counts the samples seen since the run began. Epoch = position // N, and every epoch is a permutation of the
N rows; batches run on over its end, so nothing is lost. A full shuffle would fetch a row group for each row. Here the
row groups are shuffled, `mix` of them at a time form a window, and the rows of a window are shuffled within their group
and dealt in lanes: every batch takes the same share of each group, and always at the same place in the batch. So a
worker that takes the same slice of every batch reads its own lanes only, and reads them whole.

Our reading of "data is shuffled at training time" (section D.2).

Rows fetched over rows used, tasks of 2048 rows, batch 1024, mix 16, 50,000 rows in groups of 256, two epochs:

| workers | contiguous rows | lanes | lanes, tasks cut by `windows` |
|---|---|---|---|
| 1 | 1.06 | 2.49 | 1.00 |
| 2 | 1.25 | 1.51 | 1.01 |
| 4 | 1.50 | 1.27 | 1.02 |
| 8 | 2.50 | 1.16 | 1.04 |

A resume fetches the row groups of the window that it begins in, and uses the rows that are left: nothing in vain where
batches hold whole windows (ImageNet: 4,096 rows in windows of 1,024); with windows of 4,096 rows and batches of 512 it
is 6.5 groups of 16 in the mean and 14 at the most, which is what a window of that width costs.

How well it mixes, same setting, against a full shuffle: on rows that were mixed when they were written, batches hold
the same mix of labels (relative deviation of a class's count 0.09, both); two rows that shared a batch share one in the
next epoch 1.5 times as often as by chance. Rows that neighbour each other in a shard come a median of 1 batch apart,
not 14. On rows written class by class the mix is poor (deviation 0.64; 1000 classes in groups of 64, batch 4096: 74
classes in a batch, not 984): whoever writes the shards mixes the rows first.
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
    """Where the samples of some positions lie."""

    epoch: Ints
    """int64 [n]."""
    group: Ints
    """int64 [n]: row group of the split, in the order of shards."""
    row: Ints
    """int64 [n]: row inside the group."""


class Window(NamedTuple):
    """Positions that draw on the same few row groups."""

    start: int
    stop: int


class Order:
    """The order of a run. Immutable and picklable; the current windows are cached in the process.

    Args:
        groups: rows of each row group of the split.
        seed: of the run.
        batch: global batch: the unit that is dealt evenly, best a multiple of `mix`.
        mix: row groups in a window.

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
        """Epoch, row group and row of the positions start..stop-1."""
        parts = []
        for epoch, number, low, high in self._segments(start, stop):
            group, row = self._window(epoch, number)
            parts.append((np.full(high - low, epoch), group[low:high], row[low:high]))
        if not parts:
            return RowLocations(*(np.zeros(0, np.int64) for _ in range(3)))
        return RowLocations(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def key(self, group: Ints, row: Ints) -> Ints:
        """Ordinals in the split, int64 [n], of these rows of row groups."""
        return self._first_row[group] + row

    def find(self, keys: Ints) -> tuple[Ints, Ints]:
        """Row group and row inside it, int64 [n] each: the inverse of `key`."""
        group = np.searchsorted(self._first_row, keys, side="right") - 1
        return group, keys - self._first_row[group]

    def windows(self, start: int, stop: int) -> list[Window]:
        """Cut start..stop-1 where the window changes.

        A read task that ends at a cut fetches no row group that its successor fetches again.
        """
        cuts = []
        for _, _, low, high in self._segments(start, stop):
            cuts.append(Window(start, start + high - low))
            start += high - low
        return cuts

    def _segments(self, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
        """(epoch, window, low, high): the positions as runs low..high-1 inside one window."""
        while start < stop:
            epoch, place = divmod(start, self.rows)
            # An epoch starts in the middle of a batch. Its sequence is rotated so that windows start with batches:
            # the part of the last window that no whole batch is left for comes first.
            place = (place + epoch * self.rows % -self.batch) % self.rows
            starts = self._epoch(epoch)[1]
            number = bisect_right(starts, place) - 1
            low = place - starts[number]
            left = min(stop - start, starts[number + 1] - place, self.rows - start % self.rows)
            yield epoch, number, low, low + left
            start += left

    def _make_epoch(self, epoch: int) -> tuple[Ints, list[int]]:
        """The epoch's permutation of groups, short ones last, and where its windows start (closed by N)."""
        ids = np.arange(len(self.groups))
        rank = words(self.seed, "order/groups", epoch, ids, range(1))[:, 0]
        permuted = np.lexsort((rank, self.groups < self.groups.max()))
        ends = np.cumsum(self.groups[permuted])
        starts = ends[self.mix - 1 :: self.mix].tolist()
        return permuted, [0, *(end for end in starts if end < self.rows), self.rows]

    def _make_window(self, epoch: int, number: int) -> tuple[Ints, Ints]:
        """Group and row of each place of a window: rows sorted by (j // c, lane, j % c).

        Lane is the group's place in the window, j the row's place in its permuted group, c the share of a group in
        one batch.
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
