"""View pairs at given positions of the run, for the Ray ingest and for local loops."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from soda_dist.config.sections import Data
from soda_dist.data.labels import read_labels
from soda_dist.data.order import Order
from soda_dist.data.relations import OBJECT, main_label, source_keys
from soda_dist.data.shards import ShardReader
from soda_dist.data.storage.retries import retries_since_last
from soda_dist.data.views.addressed import Ints
from soda_dist.data.views.decode import explain_unreadable
from soda_dist.data.views.pair_views import ViewPairs, view_pairs
from soda_dist.data.views.poses import CAMERA_COLUMNS, Cameras, read_cameras
from soda_dist.errors import UserError

COLUMNS = ["image", "name"]
SUBSTITUTES = 8
"""Rows tried in place of one with an unreadable image."""


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """n view pairs in run order, each of up to S sources and a target.

    S is the maximum of `data.sources`; P the pose size, 0 without poses.
    """

    source: NDArray[np.uint8]
    """uint8 [n, S, s, s, 3]: the encoder's views; zeros in empty slots and where not ok."""
    present: NDArray[np.bool_]
    """bool [n, S]: whether a slot holds a view; the first k do, k >= 1."""
    target: NDArray[np.uint8]
    """uint8 [n, t, t, 3]: the denoiser's view; zeros where not ok."""
    source_pose: NDArray[np.float32]
    """float32 [n, S, P], as in `views.poses`; zeros in empty slots and where not ok."""
    target_pose: NDArray[np.float32]
    """float32 [n, P]; zeros where not ok."""
    source_layers: NDArray[np.float32]
    """float32 [n, S, L, 2]: RandAugment layers for the training device, from `encode_layers`; L = 0 if none."""
    target_layers: NDArray[np.float32]
    """float32 [n, L, 2]."""
    key: Ints
    """int64 [n]: key of the pair's own row, which the target shows unless a substitute does."""
    ok: NDArray[np.bool_]
    """bool [n]: whether every image of the pair could be read; a loss must exclude the others."""
    index: Ints
    """int64 [n]: position in the run."""
    label: Ints
    """int64 [n, L]: the online probe's labels of the first source's row; L = 0 without a probe."""
    name: list[str]
    """Per pair: path of an unreadable image among its own, or empty."""
    reason: list[str]
    """Per pair: why it is unreadable, or empty."""
    retries: Ints
    """int64 [n]: in the first row, this process's storage retries since the previous pairs; else 0."""

    def unreadable(self) -> list[tuple[int, str, str]]:
        """Return (key, path, reason) of each pair with an unreadable image of its own."""
        rows = zip(self.key.tolist(), self.name, self.reason, strict=True)
        return [row for row in rows if row[2]]


def check_data(reader: ShardReader, data: Data) -> None:
    """Check that the split has the columns for its views and poses; reads a footer and one column of a row group.

    Raises:
        UserError: a column is missing or of another type, or no object has several views.
    """
    if data.views == "class":
        main_label(reader)
    needed: list[tuple[str, str, str, pa.DataType]] = []
    if data.views == "object":
        needed.append(("views", data.views, OBJECT, pa.int64()))
    needed += [("pose", data.pose, name, kind) for name, kind in _camera_columns(data).items()]
    have = {field.name: field.type for field in reader.schema()} if needed else {}
    for field, value, name, kind in needed:
        if have.get(name) != kind:
            state = f"of type {have[name]}" if name in have else "missing"
            got = f"{value}, but column {name} is {state} in split {reader.split}"
            raise UserError(f"data.{field}", got, f"a column {name} of type {kind}", "choose another data set")
    if data.views == "object":
        _check_several_views(reader)


def _check_several_views(reader: ShardReader) -> None:
    """Check the first row group, since rows of an object are neighbours."""
    objects = reader.group(0, [OBJECT]).column(OBJECT).to_numpy()
    if len(objects) > 1 and len(np.unique(objects)) == len(objects):
        got = f"object, but each of the first {len(objects)} rows of split {reader.split} shows a different object"
        raise UserError("data.views", got, "several views of an object", "use other data, or set data.views=augmented")


def read_pairs(
    reader: ShardReader, order: Order, start: int, stop: int, *, seed: int, data: Data, labels: Sequence[str] = ()
) -> Pairs:
    """Make the pairs at positions start..stop-1; images of each row group are fetched once.

    If an image of a pair cannot be read, the next row of its row group replaces the pair's row: a function of the key
    alone. It is drawn with the key's random numbers, so that its views differ from those of its own pair.

    Args:
        start, stop: positions in the run.
        seed: the run's seed.
        labels: columns of `Pairs.label`.

    Raises:
        UserError: a shard is missing, truncated or altered, or lacks a column that `check_data` requires; a row lacks
            a label. Unreadable images raise nothing.
    """
    located = order.locate(start, stop)
    key = order.key(located.group, located.row)
    make = partial(_draw, reader, order, seed=seed, data=data, labels=labels)
    made = make(key, key, located.epoch)
    bad, name, reason = np.flatnonzero(~made.views.ok), made.name, made.reason
    for turn in range(1, SUBSTITUTES + 1):
        if not len(bad):
            break
        shown = order.key(located.group[bad], (located.row[bad] + turn) % order.groups[located.group[bad]])
        made.replace(bad, make(shown, key[bad], located.epoch[bad]))
        bad = np.flatnonzero(~made.views.ok)
    return Pairs(
        **made.views.arrays(),
        present=made.present,
        key=key,
        ok=made.views.ok,
        index=np.arange(start, stop),
        label=made.label,
        name=name,
        reason=reason,
        retries=np.where(np.arange(stop - start) == 0, retries_since_last(), 0),
    )


class _Drawn(NamedTuple):
    """Views of n pairs, with name and problem of unreadable images."""

    views: ViewPairs
    present: NDArray[np.bool_]
    label: Ints
    name: list[str]
    reason: list[str]

    def replace(self, rows: Ints, other: "_Drawn") -> None:
        """Replace views and labels of these rows; keep names and reasons."""
        for own, new in zip(self._arrays(), other._arrays(), strict=True):
            own[rows] = new

    def _arrays(self) -> list[NDArray[Any]]:
        return [*self.views, self.present, self.label]


def _draw(
    reader: ShardReader, order: Order, shown: Ints, key: Ints, epoch: Ints, seed: int, data: Data, labels: Sequence[str]
) -> _Drawn:
    """Make pairs that show the rows `shown`, with the random numbers of the rows `key`."""
    sources = source_keys(reader, order, shown, epoch, seed=seed, data=data)
    wanted = np.column_stack([sources, shown])
    rows = np.unique(wanted[wanted >= 0])
    images, names, stored, label = _fetch(reader, order, rows, data, labels)
    places = np.where(wanted >= 0, np.searchsorted(rows, wanted), -1)
    views = view_pairs(images, places, key, epoch, seed=seed, data=data, stored=stored)
    unread = views.unread.tolist()
    return _Drawn(
        views,
        sources >= 0,
        label[places[:, 0]],
        ["" if place < 0 else names[place] for place in unread],
        ["" if place < 0 else explain_unreadable(images[place]) for place in unread],
    )


def local_pairs(
    reader: ShardReader,
    order: Order,
    start: int,
    batch: int,
    *,
    seed: int,
    data: Data,
    threads: int,
    labels: Sequence[str] = (),
) -> Iterator[Pairs]:
    """Yield consecutive batches from position `start`, endlessly, made in this process.

    Args:
        batch: pairs per batch.
        threads: batches prepared ahead; 0 = each on request. Does not change the pairs.
        labels: as in `read_pairs`.
    """
    read = partial(read_pairs, reader, order, seed=seed, data=data, labels=labels)
    if threads == 0:
        while True:
            yield read(start, start + batch)
            start += batch
    ahead: deque[Future[Pairs]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="pairs") as pool:
        try:
            while True:
                while len(ahead) <= threads:
                    ahead.append(pool.submit(read, start, start + batch))
                    start += batch
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _camera_columns(data: Data) -> dict[str, pa.DataType]:
    return CAMERA_COLUMNS if data.pose == "cameras" else {}


def _fetch(
    reader: ShardReader, order: Order, keys: Ints, data: Data, labels: Sequence[str]
) -> tuple[list[bytes], list[str], Cameras | None, Ints]:
    """Return image bytes, names, cameras (None without) and labels of the rows with these ascending keys."""
    columns = [*COLUMNS, *_camera_columns(data), *labels]
    images: list[bytes] = []
    names: list[str] = []
    stored = [Cameras(np.zeros((0, 4, 4)), np.zeros((0, 3, 3)))]
    label = [np.zeros((0, len(labels)), np.int64)]
    groups, rows = order.find(keys)
    for group in np.unique(groups).tolist():
        table = reader.group(group, columns).take(rows[groups == group])
        images += table.column("image").to_pylist()
        names += table.column("name").to_pylist()
        if data.pose == "cameras":
            stored.append(read_cameras(table))
        label.append(read_labels(table, labels, reader.manifest) if labels else np.zeros((len(table), 0), np.int64))
    joined = Cameras(*(np.concatenate(column) for column in zip(*stored, strict=True)))
    return images, names, joined if data.pose == "cameras" else None, np.concatenate(label)
