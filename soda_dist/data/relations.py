"""Source rows of a pair (section 3.3): its own image, or other rows of its object or class.

The number of sources is uniform over `data.sources`; rows are drawn without repetition, all orders equally likely. Both
are functions of (seed, epoch, key) and of the members. If an object or class has fewer other rows than sources, all are
shown and the remaining slots stay empty; a row without others is its own source.

An object's rows have consecutive keys (as every import ensures) and are found in the row groups around a row. A class's
rows may lie anywhere: each process reads the label column of the whole split once (keeping 8 bytes per row), and nearly
every source then needs a row group fetched for that one image. Data sets for `data.views=class` are best prepared with
small row groups (`rows_per_group=8`).
"""

import threading
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from soda_dist.config.sections import Data
from soda_dist.data.order import Order
from soda_dist.data.shards import ShardReader
from soda_dist.data.views.addressed import Floats, Ints, uniforms
from soda_dist.errors import UserError

OBJECT = "object"
"""Column with the object's number."""
_INDEXING = threading.Lock()


class RelatedRows(NamedTuple):
    """For each of n rows, the range of rows related to it, in some order of the split."""

    start: Ints
    """int64 [n]: start of the range."""
    size: Ints
    """int64 [n]: rows in the range, including the row itself."""
    rank: Ints
    """int64 [n]: the row's own place in the range."""


class ClassIndex(NamedTuple):
    """Rows of a split, sorted stably by class."""

    keys: NDArray[np.int32]
    """int32 [N]: keys, sorted by class."""
    place: NDArray[np.int32]
    """int32 [N]: place of each key in `keys`."""
    starts: Ints
    """int64 [classes + 1]: start of each class, and N."""


def source_keys(reader: ShardReader, order: Order, keys: Ints, epochs: Ints, *, seed: int, data: Data) -> Ints:
    """Return the keys of the sources' rows, int64 [n, S]; -1 = empty slot.

    Args:
        keys, epochs: int64 [n], of the pairs' own rows.
        seed: the run's seed.
    """
    fewest, most = data.sources
    wanted = fewest + (uniforms(seed, "sources/count", epochs, keys, range(1)) * (most - fewest + 1)).astype(np.int64)
    if data.views in ("augmented", "same"):
        return np.where(np.arange(most) < wanted, keys[:, None], -1)
    if data.views == "object":
        related, sorted_keys = find_object_rows(reader, order, keys), None
    else:
        index = class_index(reader, main_label(reader))
        related, sorted_keys = find_class_rows(index, keys), index.keys
    u = uniforms(seed, "sources/rows", epochs, keys, range(most))
    others = related.size - 1
    drawn = draw_distinct(u, others)
    drawn += drawn >= related.rank[:, None]  # skip the row itself
    drawn[:, 0] = np.where(others, drawn[:, 0], related.rank)
    empty = np.arange(most) >= np.minimum(wanted, np.maximum(others, 1)[:, None])
    places = np.where(empty, 0, related.start[:, None] + drawn)
    return np.where(empty, -1, places if sorted_keys is None else sorted_keys[places].astype(np.int64))


def draw_distinct(u: Floats, count: Ints) -> Ints:
    """Draw distinct numbers below `count`, int64 [n, S], all sequences equally likely.

    The first numbers do not depend on S; those from place `count` on are meaningless.

    Args:
        u: float64 [n, S], uniform on [0, 1).
        count: int64 [n].
    """
    drawn = np.zeros((len(u), 0), np.int64)
    for number in range(u.shape[1]):
        one = (u[:, number] * np.maximum(count - number, 1)).astype(np.int64)
        for taken in np.sort(drawn, axis=1).T:  # ascending: maps a rank among the rest to a number
            one += one >= taken
        drawn = np.hstack([drawn, one[:, None]])
    return drawn


def find_object_rows(reader: ShardReader, order: Order, keys: Ints) -> RelatedRows:
    """Find the rows of the same object, as a range of keys; reads further row groups only where it crosses an edge."""
    groups, rows = order.find(keys)
    start, stop = np.empty_like(keys), np.empty_like(keys)
    for group in np.unique(groups).tolist():
        values = _objects(reader, group)
        edges = np.concatenate([[0], 1 + np.flatnonzero(values[1:] != values[:-1]), [len(values)]])
        at = np.flatnonzero(groups == group)
        run = np.searchsorted(edges, rows[at], side="right") - 1
        low, high = edges[run], edges[run + 1]
        if (low == 0).any():
            low = low - np.where(low == 0, _reach(reader, order, group, -1, values[0]), 0)
        if (high == len(values)).any():
            high = high + np.where(high == len(values), _reach(reader, order, group, 1, values[-1]), 0)
        shift = keys[at] - rows[at]
        start[at], stop[at] = low + shift, high + shift
    return RelatedRows(start, stop - start, keys - start)


def _reach(reader: ShardReader, order: Order, group: int, step: int, value: np.int64) -> int:
    """Count an object's rows beyond a group's edge, in the groups before (step -1) or after it (1)."""
    reach = 0
    while 0 <= (group := group + step) < len(order.groups):
        values = _objects(reader, group)[::step]
        others = np.flatnonzero(values != value)
        if len(others):
            return reach + int(others[0])
        reach += len(values)
    return reach


def _objects(reader: ShardReader, group: int) -> Ints:
    return reader.group(group, [OBJECT]).column(OBJECT).to_numpy()


def main_label(reader: ShardReader) -> str:
    """Return the name of the data set's main label; a `UserError` unless it is a class or factor."""
    labels, name = reader.manifest.labels, reader.manifest.main_label
    if name is None or name not in labels or labels[name].kind not in ("class", "factor"):
        got = "class, but the data set has no main label that is a class or a factor"
        raise UserError("data.views", got, "augmented, same, object", "set one of them, or use another data set")
    return name


def class_index(reader: ShardReader, label: str) -> ClassIndex:
    """Return the index of a split; each process caches the last two."""
    with _INDEXING:
        return _class_index(reader, label)


@lru_cache(maxsize=2)
def _class_index(reader: ShardReader, label: str) -> ClassIndex:
    column = reader.column(label)
    if column.null_count:
        got = f"class, but {column.null_count} rows have no {label}"
        raise UserError("data.views", got, "a label in every row", "set other views, or use another data set")
    labels = column.to_numpy().astype(np.int32)
    keys = np.argsort(labels, kind="stable").astype(np.int32)
    place = np.empty_like(keys)
    place[keys] = np.arange(len(keys), dtype=np.int32)
    starts = np.concatenate([[0], 1 + np.flatnonzero(np.diff(labels[keys])), [len(keys)]])
    return ClassIndex(keys, place, starts)


def find_class_rows(index: ClassIndex, keys: Ints) -> RelatedRows:
    """Find the rows of the same class, as a range of `index.keys`."""
    place = index.place[keys].astype(np.int64)
    number = np.searchsorted(index.starts, place, side="right") - 1
    start = index.starts[number]
    return RelatedRows(start, index.starts[number + 1] - start, place - start)
