import pickle
import time
from itertools import pairwise

import numpy as np
import pytest

from soda_dist.data.order import Order
from soda_dist.data.views.addressed import words
from soda_dist.errors import UserError

GROUPS = [32] * 9 + [7, 32, 5]
CASES = [
    (GROUPS, 40, 4),
    (GROUPS, 64, 16),
    (GROUPS, 5, 3),
    (GROUPS, 700, 2),
    ([1], 3, 2),
    ([3, 8, 8], 1, 1),
    ([64] * 8, 64, 4),
]


def rank(seed: int, purpose: str, epoch: int, number: int) -> int:
    return int(words(seed, purpose, epoch, np.array([number]), range(1))[0, 0])


def slow_epoch(groups: list[int], seed: int, batch: int, mix: int, epoch: int) -> list[tuple[int, int]]:
    """The order of one epoch from its definition, row by row."""
    first = [sum(groups[:g]) for g in range(len(groups))]
    ranked = sorted(range(len(groups)), key=lambda g: (groups[g] < max(groups), rank(seed, "order/groups", epoch, g)))
    share, sequence = max(1, batch // mix), []
    for w in range(0, len(ranked), mix):
        dealt = []
        for lane, g in enumerate(ranked[w : w + mix]):
            rows = sorted(range(groups[g]), key=lambda r: rank(seed, "order/rows", epoch, first[g] + r))
            dealt += [((j // share, lane, j % share), (g, r)) for j, r in enumerate(rows)]
        sequence += [row for _, row in sorted(dealt)]
    total = len(sequence)
    boundary = next(p for p in range(epoch * total, epoch * total + batch) if p % batch == 0) - epoch * total
    return [sequence[(q - boundary) % total] for q in range(total)]


@pytest.mark.parametrize(("groups", "batch", "mix"), CASES)
def test_it_is_the_order_of_its_definition(groups: list[int], batch: int, mix: int) -> None:
    order = Order(groups, 11, batch, mix)
    expected = [(e, g, r) for e in range(3) for g, r in slow_epoch(groups, 11, batch, mix, e)]
    located = order.locate(0, len(expected))
    assert list(zip(*(column.tolist() for column in located), strict=True)) == expected
    assert all(column.dtype == np.int64 for column in located)


@pytest.mark.parametrize(("groups", "batch", "mix"), CASES)
def test_any_stretch_is_that_part_of_the_whole(groups: list[int], batch: int, mix: int) -> None:
    rows = sum(groups)
    whole = np.stack(Order(groups, 3, batch, mix).locate(0, 4 * rows))
    rng = np.random.default_rng(0)
    for start, stop in np.sort(rng.integers(0, 4 * rows, (20, 2)), axis=1).tolist():
        fresh = pickle.loads(pickle.dumps(Order(groups, 3, batch, mix)))
        assert np.array_equal(np.stack(fresh.locate(start, stop)), whole[:, start:stop])


@pytest.mark.parametrize("epoch", [0, 1, 2, 1000])
def test_every_epoch_is_another_permutation(epoch: int) -> None:
    order = Order(GROUPS, 0, 40, 4)
    first = np.cumsum(GROUPS) - GROUPS
    here, there = (order.locate(e * order.rows, (e + 1) * order.rows) for e in (epoch, epoch + 1))
    ordinals = [first[at.group] + at.row for at in (here, there)]
    assert all(np.array_equal(np.sort(o), np.arange(order.rows)) for o in ordinals)
    assert not np.array_equal(*ordinals)
    assert set(here.epoch) == {epoch}


def test_another_seed_gives_another_order() -> None:
    one, two = (np.stack(Order(GROUPS, seed, 40, 4).locate(0, 300)) for seed in (0, 1))
    assert (one[1:] == two[1:]).all(0).mean() < 0.2


def test_every_batch_takes_the_same_share_of_each_group_of_its_window() -> None:
    order = Order([64] * 24, 0, 32, 8)
    for epoch in range(3):
        for batch in range(24 * 64 // 32):
            start = epoch * order.rows + batch * 32
            _, counts = np.unique(order.locate(start, start + 32).group, return_counts=True)
            assert counts.tolist() == [4] * 8


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
def test_workers_read_their_groups_once_even_where_epochs_end_inside_a_batch(workers: int) -> None:
    groups = [64] * 160 + [19]
    order = Order(groups, 0, 128, 8)
    part, read, used = 128 // workers, 0, 0
    batches = [(s, s + 128) for s in range(0, 3 * order.rows - 128, 128)]
    for rank in range(workers):
        task: set[tuple[int, int]] = set()
        for start, _ in batches:
            at = order.locate(start + rank * part, start + (rank + 1) * part)
            now = set(zip(at.epoch.tolist(), at.group.tolist(), strict=True))
            read += sum(groups[g] for _, g in now - task)
            task, used = now, used + part
    assert read / used < 1.1


def test_windows_cut_a_stretch_where_the_groups_change() -> None:
    order = Order([16] * 10, 0, 32, 4)
    assert [tuple(w) for w in order.windows(0, 160)] == [(0, 64), (64, 128), (128, 160)]
    assert [tuple(w) for w in order.windows(70, 100)] == [(70, 100)]
    groups = [set(order.locate(*w).group.tolist()) for w in order.windows(0, 160)]
    assert [len(g) for g in groups] == [4, 4, 2]
    assert set.union(*groups) == set(range(10))
    pieces = order.windows(33, 1000)
    assert pieces[0].start == 33
    assert pieces[-1].stop == 1000
    assert all(a.stop == b.start for a, b in pairwise(pieces))


@pytest.mark.parametrize(("rows", "batch", "most"), [(64, 4096, 0), (64, 1024, 0), (256, 512, 14)])
def test_what_a_resume_fetches_in_vain(rows: int, batch: int, most: int) -> None:
    """Row groups that the window of the first batch has, less the rows that are still to come from them."""
    plan, found = Order([rows] * 400, 3, batch, 16), []
    for start in range(0, 8 * 400 * rows, 7 * batch):
        window = plan.windows(start, start + 16 * rows)[0]
        located = plan.locate(window.start, window.stop)
        found.append(len(np.unique(located.group)) - len(located.group) / rows)
    assert min(found) == 0 and max(found) == most
    assert np.mean(found) <= most / 2 + 0.5


def test_a_split_without_rows_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match="0 rows"):
        Order([], 0, 8, 4)


def test_two_thousand_positions_take_well_under_a_millisecond() -> None:
    order = Order([256] * 64, 0, 1024, 16)
    order.locate(0, 2048)
    taken = []
    for _ in range(50):
        start = time.process_time()
        order.locate(0, 2048)
        taken.append(time.process_time() - start)
    assert np.median(taken) < 5e-4
