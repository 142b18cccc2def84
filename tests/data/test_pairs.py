import itertools
import threading
from dataclasses import fields

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from soda_dist.config.sections import Augmentation, Data
from soda_dist.data.order import Order
from soda_dist.data.pairs import Pairs, local_pairs, read_pairs
from soda_dist.data.views.pair_views import view_pairs
from tests.data.views.test_decode import encoded, scene

GROUPS = [8, 8, 8, 8, 8, 8, 3]
BROKEN = (5, 30)
DATA = Data(source_size=24, target_size=16, augmentation=Augmentation(randaugment_rate=0.5))
IMAGES = [b"broken" if i in BROKEN else encoded(Image.fromarray(scene(30, 34, i)), "JPEG") for i in range(sum(GROUPS))]


class Memory:
    """Row groups in memory, with what was asked of them."""

    def __init__(self) -> None:
        rows = [{"key": i, "image": image, "name": f"image {i}", "label": i % 3} for i, image in enumerate(IMAGES)]
        bounds = itertools.pairwise(itertools.accumulate(GROUPS, initial=0))
        self.tables = [pa.Table.from_pylist(rows[a:b]) for a, b in bounds]
        self.asked: list[int] = []

    def group(self, number: int, columns: list[str]) -> pa.Table:
        self.asked.append(number)
        return self.tables[number].select(columns)


def order(batch: int = 10) -> Order:
    return Order(GROUPS, 4, batch, 4)


def equal(a: Pairs, b: Pairs) -> bool:
    arrays = all(np.array_equal(getattr(a, k), getattr(b, k)) for k in ("source", "target", "key", "ok", "index"))
    return arrays and a.name == b.name


def joined(parts: list[Pairs]) -> Pairs:
    texts = ("name", "reason")
    names = [field.name for field in fields(Pairs) if field.name not in texts]
    arrays = {k: np.concatenate([getattr(p, k) for p in parts]) for k in names}
    return Pairs(**arrays, **{k: [text for p in parts for text in getattr(p, k)] for k in texts})


def standing_in(key: int) -> int:
    """The next row of the key's row group that is not broken."""
    stop = next(end for end in np.cumsum(GROUPS) if key < end)
    group = range(stop - next(rows for rows, end in zip(GROUPS, np.cumsum(GROUPS), strict=True) if end == stop), stop)
    following = [*range(key, stop), *group]
    return next(row for row in following if row not in BROKEN)


def test_pairs_are_the_views_of_the_rows_that_the_order_names() -> None:
    got = read_pairs(Memory(), order(), 37, 120, seed=4, data=DATA)
    at = order().locate(37, 120)
    keys = np.cumsum([0, *GROUPS])[at.group] + at.row
    own = np.arange(len(keys))
    shown = np.stack([own, own], 1)
    views = view_pairs([IMAGES[standing_in(k)] for k in keys.tolist()], shown, keys, at.epoch, seed=4, data=DATA)
    assert np.array_equal(got.key, keys)
    assert np.array_equal(got.index, np.arange(37, 120))
    assert np.array_equal(got.source, views.source)
    assert np.array_equal(got.target, views.target)
    assert got.ok.all() and np.isin(keys, BROKEN).sum() >= 2
    assert {array.dtype for array in (got.key, got.index)} == {np.dtype(np.int64)}


def test_unreadable_rows_are_named_and_the_others_not() -> None:
    got = read_pairs(Memory(), order(), 0, 51, seed=4, data=DATA)
    found = {key: (name, reason) for key, name, reason in got.unreadable()}
    assert {key: name for key, (name, _) in found.items()} == {5: "image 5", 30: "image 30"}
    assert {reason for _, reason in found.values()} <= {"not an image", "no bytes", "broken or truncated"}
    assert sorted(got.name) == [""] * 49 + ["image 30", "image 5"]
    assert all(type(key) is int for key in found)


def test_where_no_row_of_a_group_can_be_read_its_pairs_are_not_ok(monkeypatch: pytest.MonkeyPatch) -> None:
    group = set(range(GROUPS[0]))
    images = [b"no image" if key in group else image for key, image in enumerate(IMAGES)]
    monkeypatch.setattr("tests.data.test_pairs.IMAGES", images)
    got = read_pairs(Memory(), order(), 0, sum(GROUPS), seed=4, data=DATA)
    assert set(got.key[~got.ok].tolist()) == group
    assert not got.source[~got.ok].any() and not got.target[~got.ok].any()
    assert {key for key, _, _ in got.unreadable()} == group | set(BROKEN)


def test_each_row_group_is_fetched_once_for_a_stretch() -> None:
    reader = Memory()
    read_pairs(reader, order(), 3, 29, seed=4, data=DATA)
    at = order().locate(3, 29)
    broken = np.isin(order().key(at.group, at.row), BROKEN)
    assert sorted(reader.asked) == sorted([*set(at.group.tolist()), *at.group[broken].tolist()]), (
        "once more for stand-ins"
    )


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_workers_together_hold_the_same_batch(workers: int) -> None:
    """The set, the order and every pixel of a global batch, for any number of workers, over an epoch's end."""
    part = 10 // workers
    for start in range(0, 130, 10):
        whole = read_pairs(Memory(), order(), start, start + 10, seed=4, data=DATA)
        shares = [
            read_pairs(Memory(), order(), start + r * part, start + (r + 1) * part, seed=4, data=DATA)
            for r in range(workers)
        ]
        assert equal(joined(shares), whole)


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_local_batches_follow_one_another(threads: int) -> None:
    batches = local_pairs(Memory(), order(), 23, 10, seed=4, data=DATA, threads=threads)
    got = list(itertools.islice(batches, 12))
    batches.close()
    assert equal(joined(got), read_pairs(Memory(), order(), 23, 143, seed=4, data=DATA))


@pytest.mark.parametrize("threads", [0, 2])
def test_a_failing_reader_fails_the_loop(threads: int) -> None:
    class Lost(Memory):
        def group(self, number: int, columns: list[str]) -> pa.Table:
            if len(self.asked) > 20:
                raise OSError("the disk is gone")
            return super().group(number, columns)

    with pytest.raises(OSError, match="the disk is gone"):
        list(local_pairs(Lost(), order(), 0, 10, seed=4, data=DATA, threads=threads))


def test_closing_the_loop_ends_its_threads() -> None:
    before = threading.active_count()
    batches = local_pairs(Memory(), order(), 0, 10, seed=4, data=DATA, threads=3)
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before


def test_an_empty_stretch_is_empty() -> None:
    got = read_pairs(Memory(), order(), 9, 9, seed=4, data=DATA)
    assert got.source.shape == (0, 1, 24, 24, 3)
    assert got.name == []
    assert got.unreadable() == []
