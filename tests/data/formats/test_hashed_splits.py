"""Drawn splits: every number once, the stated shares, the same for any order of names."""

import numpy as np
import pytest

from soda_dist.data.formats.hashed_splits import split_names, split_numbers, split_of


@pytest.mark.parametrize(
    ("count", "sizes"), [(1000, (800, 100, 100)), (14, (12, 1, 1)), (3, (3, 0, 0)), (0, (0, 0, 0))]
)
def test_shares_and_every_number_once(count: int, sizes: tuple[int, ...]) -> None:
    found = split_numbers(count, 5)
    assert tuple(len(found[name]) for name in ("train", "val", "test")) == sizes
    assert sorted(np.concatenate(list(found.values()))) == list(range(count))
    assert all((np.diff(numbers) > 0).all() for numbers in found.values())


def test_a_seed_draws_other_splits_and_the_same_ones_again() -> None:
    one, again, other = (split_numbers(1000, seed)["test"] for seed in (1, 1, 2))
    assert (one == again).all()
    assert 1 <= len(set(one) & set(other)) <= 30, "about a tenth in common"
    assert one.max() > 900 and one.min() < 100, "drawn from everywhere"


def test_the_order_of_names_does_not_matter() -> None:
    names = [f"object {i}" for i in range(40)]
    found = split_names(names, 3)
    assert found == split_names(names[::-1], 3)
    assert sorted(name for part in found.values() for name in part) == sorted(names)
    assert [len(found[split]) for split in ("train", "val", "test")] == [32, 4, 4]


def test_the_split_of_a_name_needs_no_other_name() -> None:
    splits = np.array([split_of(f"{i}.jpg", 0) for i in range(20_000)])
    for split, share in (("train", 0.8), ("val", 0.1), ("test", 0.1)):
        assert (splits == split).mean() == pytest.approx(share, abs=4 * (share * (1 - share) / 20_000) ** 0.5)
    assert split_of("3.jpg", 0) == splits[3]
    assert any(split_of(f"{i}.jpg", 1) != splits[i] for i in range(20))
