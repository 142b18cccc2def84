"""Which rows are a pair's sources, against an index of the whole split and by their frequencies."""

import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chisquare

from soda_dist.config.sections import Data
from soda_dist.data.order import Order
from soda_dist.data.relations import draw_distinct, source_keys
from soda_dist.data.shards import Label, ShardReader
from soda_dist.data.views.addressed import uniforms
from soda_dist.errors import UserError
from tests.data.objects import LABELS, OBJECTS, ROWS, SHARDS, Counting, flat, write_objects

KEYS = np.arange(ROWS)
MEMBERS = {"object": OBJECTS, "class": LABELS}


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    return write_objects(str(tmp_path_factory.mktemp("objects")), flat)


def order_of(reader: ShardReader, batch: int = 12, mix: int = 3) -> Order:
    return Order(reader.groups, 2, batch, mix)


def drawn(reader: ShardReader, data: Data, epoch: int, keys: np.ndarray = KEYS, seed: int = 2) -> np.ndarray:
    epochs = np.full(len(keys), epoch)
    return source_keys(reader, order_of(reader), keys, epochs, seed=seed, data=data)


@pytest.mark.parametrize("views", ["object", "class"])
@pytest.mark.parametrize("sources", [(1, 1), (1, 3), (4, 4)])
def test_sources_are_other_members_each_once(views: str, sources: tuple[int, int], reader: ShardReader) -> None:
    """Over the borders of row groups and shards: `SHARDS` cuts the objects as it likes."""
    value = MEMBERS[views]
    for epoch in range(4):
        found = drawn(reader, Data(views=views, sources=sources), epoch)
        assert found.shape == (ROWS, sources[1])
        for key in KEYS:
            others = set(np.flatnonzero(value == value[key]).tolist()) - {int(key)}
            shown = found[key][found[key] >= 0].tolist()
            assert found[key].tolist() == shown + [-1] * (sources[1] - len(shown)), "the first slots are filled"
            if others:
                assert set(shown) <= others
                assert len(set(shown)) == len(shown)
                assert min(sources[0], len(others)) <= len(shown) <= min(sources[1], len(others))
            else:
                assert shown == [key]


@pytest.mark.parametrize("views", ["object", "class"])
def test_each_other_member_is_shown_equally_often(views: str, reader: ShardReader) -> None:
    value, data = MEMBERS[views], Data(views=views, sources=(2, 2))
    found = np.stack([drawn(reader, data, epoch) for epoch in range(600)])
    for key in (3, 6, 17, 24, 62):
        others = [k for k in np.flatnonzero(value == value[key]).tolist() if k != key]
        for slot in range(min(2, len(others))):
            counts = Counter(found[:, key, slot].tolist())
            assert set(counts) == set(others)
            assert chisquare([counts[k] for k in others]).pvalue > 1e-3, (key, slot)
    # An epoch as a whole: over all rows of an object, each of its views is a source as often as any other.
    whole = np.flatnonzero(value == value[24])
    counts = Counter(found[:, whole].reshape(-1).tolist())
    assert chisquare([counts[k] for k in whole.tolist()]).pvalue > 1e-3


def test_sources_of_neighbouring_rows_are_unrelated(reader: ShardReader) -> None:
    found = np.stack([drawn(reader, Data(views="object"), epoch)[:, 0] for epoch in range(900)])
    whole = np.flatnonzero(OBJECTS == 1000 - 7 * 6)  # seven views
    first, second = found[:, whole[0]] - whole[1], found[:, whole[6]] - whole[0]
    table = np.histogram2d(first, second, bins=(6, 6))[0]
    assert chisquare(table.ravel()).pvalue > 1e-3


@pytest.mark.parametrize("views", ["augmented", "object", "class"])
def test_each_number_of_sources_is_equally_likely(views: str, reader: ShardReader) -> None:
    keys = np.flatnonzero(OBJECTS == 1000 - 7 * 7)  # twenty views: never too few
    data = Data(views=views, sources=(2, 5))
    counts = np.concatenate([(drawn(reader, data, epoch, keys) >= 0).sum(1) for epoch in range(60)])
    assert chisquare(np.bincount(counts, minlength=6)[2:]).pvalue > 1e-3
    assert set(counts.tolist()) == {2, 3, 4, 5}


def test_augmented_views_show_the_row_itself(reader: ShardReader) -> None:
    found = drawn(reader, Data(sources=(1, 3)), 5)
    assert ((found == KEYS[:, None]) | (found == -1)).all()
    assert (found[:, 0] == KEYS).all()


@pytest.mark.parametrize("views", ["augmented", "object", "class"])
def test_a_row_is_drawn_for_whatever_its_company(views: str, reader: ShardReader) -> None:
    data, rng = Data(views=views, sources=(1, 4)), np.random.default_rng(0)
    whole = drawn(reader, data, 3)
    for at in (KEYS[::-1], rng.permutation(ROWS)[:20], *(KEYS[i : i + 1] for i in KEYS)):
        assert np.array_equal(drawn(reader, data, 3, at), whole[at])
    assert not np.array_equal(drawn(reader, data, 4), whole)
    assert not np.array_equal(drawn(reader, data, 3, seed=9), whole)


def test_first_sources_do_not_depend_on_how_many_follow(reader: ShardReader) -> None:
    many, few = (drawn(reader, Data(views="object", sources=(n, n)), 1) for n in (6, 2))
    assert np.array_equal(many[:, :2], few)


def test_distinct_numbers_are_every_sequence_equally_often() -> None:
    count, rows = 5, 30000
    u = uniforms(0, "test", 0, np.arange(rows), range(3))
    found = draw_distinct(u, np.full(rows, count))
    counts = Counter(map(tuple, found.tolist()))
    assert set(counts) == set(permutations(range(count), 3))
    assert len(counts) == math.perm(count, 3)
    assert chisquare(list(counts.values())).pvalue > 1e-3
    all_of_them = draw_distinct(uniforms(1, "test", 0, np.arange(500), range(4)), np.full(500, 4))
    assert (np.sort(all_of_them, axis=1) == np.arange(4)).all()


def test_only_groups_that_an_object_reaches_are_looked_into(reader: ShardReader) -> None:
    """Rows 4..8 are one object, in groups 0 and 1; row 9..12 lie inside group 1."""
    for keys, groups in (([10], {1}), ([5], {0, 1}), ([8], {0, 1}), ([22], {3, 4, 5, 6})):
        counting = Counting(reader)
        drawn(counting, Data(views="object"), 0, np.array(keys))
        assert {group for group, _ in counting.groups_asked} == groups, keys
        assert {columns for _, columns in counting.groups_asked} == {("object",)}
    assert (np.diff(OBJECTS[22:42]) == 0).all(), "one object, in four groups of two shards"
    assert np.cumsum(SHARDS[0] + SHARDS[1] + SHARDS[2]).tolist()[2:7] == [21, 29, 32, 39, 48]


def test_labels_are_read_once_in_a_process(reader: ShardReader) -> None:
    counting = Counting(reader)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda epoch: drawn(counting, Data(views="class"), epoch), range(8)))
    assert counting.columns_asked == ["label"]
    assert counting.groups_asked == []


def test_a_label_that_is_missing_in_a_row(tmp_path: Path) -> None:
    from tests.data import objects

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects, "row", lambda *given, of=objects.row: {**of(*given), "label": None})
        reader = write_objects(str(tmp_path), flat)
    with pytest.raises(UserError, match=rf"data.views: got class, but {ROWS} rows have no label"):
        drawn(reader, Data(views="class"), 0)


@pytest.mark.parametrize("labels", [{}, {"label": Label(kind="attribute", names=("no", "yes"))}])
def test_classes_need_a_main_label(labels: dict[str, Label], tmp_path: Path) -> None:
    reader = write_objects(str(tmp_path), flat, labels=labels)
    with pytest.raises(UserError, match=r"data\.views: got class, but the data set has no main label"):
        drawn(reader, Data(views="class"), 0)
