"""Rows that a limit takes: drawn over the whole split; a larger limit contains a smaller one."""

import numpy as np
import pytest

from soda_dist.evaluation.rows import drawn_order, drawn_rows


def test_a_larger_limit_contains_a_smaller_one_and_no_row_comes_twice() -> None:
    whole = drawn_rows(500, None, 0, "train")
    assert whole.tolist() == list(range(500)) == drawn_rows(500, 500, 0, "train").tolist()
    before: set[int] = set()
    for limit in (1, 2, 30, 499):
        rows = drawn_rows(500, limit, 0, "train").tolist()
        assert rows == sorted(set(rows)) and len(rows) == limit and before <= set(rows)
        before = set(rows)


def test_every_part_of_a_sorted_split_gives_its_share() -> None:
    """Five categories one after another, as in SmallNORB: a multinomial's spread around 2,000 of each is 40."""
    categories = np.repeat(np.arange(5), 4860)[drawn_rows(24_300, 10_000, 0, "train")]
    assert np.abs(np.bincount(categories) - 2000).max() < 160


def test_seed_split_and_address_each_decide() -> None:
    draws = [drawn_order(100, 0, "train"), drawn_order(100, 1, "train"), drawn_order(100, 0, "test")]
    draws += [drawn_order(100, 0, "test", 0), drawn_order(100, 0, "test", 1)]
    for at, one in enumerate(draws):
        assert sorted(one) == list(range(100))
        for other in draws[:at]:
            assert np.corrcoef(one, other)[0, 1] == pytest.approx(0, abs=0.35)
    assert (drawn_order(100, 0, "train") == draws[0]).all()
