"""View pairs of any stretch of the run: the one piece that the Ray ingest and a plain loop both call."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from soda_dist.config.schema import Data
from soda_dist.data.draws import Ints
from soda_dist.data.order import Located, Order
from soda_dist.data.shards import ShardReader
from soda_dist.data.views import view_pairs

COLUMNS = ["key", "image", "name"]


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """n view pairs in the order of the run."""

    source: NDArray[np.uint8]
    """uint8 [n, s, s, 3], the encoder's view; zeros where not ok."""
    target: NDArray[np.uint8]
    """uint8 [n, t, t, 3], the denoiser's view; zeros where not ok."""
    key: Ints
    """int64 [n]: the row's ordinal in its split."""
    ok: NDArray[np.bool_]
    """bool [n]: the image could be read; a loss must leave the others out."""
    index: Ints
    """int64 [n]: position in the run."""
    name: list[str]
    """n texts: the source path of a row that is not ok, empty for the others."""

    def unreadable(self) -> list[tuple[int, str]]:
        """(key, source path) of each row that is not ok."""
        return [(int(self.key[i]), self.name[i]) for i in np.flatnonzero(~self.ok)]


def read_pairs(reader: ShardReader, order: Order, start: int, stop: int, *, seed: int, data: Data) -> Pairs:
    """The pairs at positions start..stop-1; each row group is fetched once.

    Raises:
        UserError: of the reader: a shard is missing, truncated or altered. Images that cannot be read raise nothing.
    """
    located = order.locate(start, stop)
    key, images, names = _fetch(reader, located)
    views = view_pairs(images, key, located.epoch, seed=seed, data=data)
    return Pairs(
        source=views.source,
        target=views.target,
        key=key,
        ok=views.ok,
        index=np.arange(start, stop),
        name=["" if ok else name for ok, name in zip(views.ok.tolist(), names, strict=True)],
    )


def local_pairs(
    reader: ShardReader, order: Order, start: int, batch: int, *, seed: int, data: Data, threads: int
) -> Iterator[Pairs]:
    """Successive batches from position `start` on, without end, in this process.

    Args:
        batch: pairs in each.
        threads: that prepare batches ahead, one each; 0: a batch is made when it is asked for. The pairs are the same.
    """
    if threads == 0:
        while True:
            yield read_pairs(reader, order, start, start + batch, seed=seed, data=data)
            start += batch
    ahead: deque[Future[Pairs]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="pairs") as pool:
        try:
            while True:
                while len(ahead) <= threads:
                    ahead.append(pool.submit(read_pairs, reader, order, start, start + batch, seed=seed, data=data))
                    start += batch
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _fetch(reader: ShardReader, located: Located) -> tuple[Ints, list[bytes], list[str]]:
    """Keys, bytes and source paths of the rows."""
    count = len(located.group)
    key, images, names = np.empty(count, np.int64), [b""] * count, [""] * count
    for group in np.unique(located.group):
        places = np.flatnonzero(located.group == group)
        table = reader.group(int(group), COLUMNS).take(located.row[places])
        key[places] = table.column("key").to_numpy()
        found = zip(places.tolist(), table.column("image").to_pylist(), table.column("name").to_pylist(), strict=True)
        for place, image, name in found:
            images[place], names[place] = image, name
    return key, images, names
