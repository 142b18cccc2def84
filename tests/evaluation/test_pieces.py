"""Pieces of a split: whole row groups, in order and once; labels and splits as users name them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from soda_dist.data.shards import Split, read_manifest
from soda_dist.data.storage.folder import open_folder
from soda_dist.errors import UserError
from soda_dist.evaluation.pieces import Features, check_splits, plan_pieces
from tests.tiny import tiny_config


@pytest.mark.parametrize("limit", [None, 1, 10, 16, 17, 31, 1000])
@pytest.mark.parametrize("batch", [1, 10, 16, 17, 500])
def test_pieces_cover_the_first_rows_once_and_in_order(limit: int | None, batch: int) -> None:
    groups = (10, 7, 10, 10, 8)
    total = min(limit or 45, 45)
    pieces = plan_pieces("train", groups, limit, batch)
    assert [p.first_row for p in pieces] == [sum(p.rows for p in pieces[:i]) for i in range(len(pieces))]
    assert sum(p.rows for p in pieces) == total
    assert [g for p in pieces for g in p.groups] == list(range(pieces[-1].groups[-1] + 1))
    starts = np.cumsum([0, *groups])
    assert all(p.first_row == starts[p.groups[0]] for p in pieces)
    assert all(p.rows >= batch > p.rows - groups[p.groups[-1]] for p in pieces[:-1]), "no larger than need be"
    assert all(p.rows > starts[p.groups[-1]] - p.first_row for p in pieces), "no group is read in vain"


def test_a_row_without_a_value_is_told_when_it_is_asked_for() -> None:
    features = Features("test", pa.table({"a": pa.array([1, None]), "b": pa.array([1, 2])}), {}, [])
    assert features.labels(["b"]).tolist() == [[1], [2]]
    with pytest.raises(UserError, match="a: got 1 rows of split test without a value"):
        features.labels(["b", "a"])


def test_a_split_that_is_not_there_or_empty_is_the_users_mistake(small: Path) -> None:
    manifest = read_manifest(open_folder(str(small / "data")))
    check_splits(manifest, tiny_config())
    with pytest.raises(UserError, match=r"evaluation.test_split: got val; allowed: train, test"):
        check_splits(manifest, tiny_config(evaluation={"test_split": "val"}))
    bare = manifest.model_copy(update={"splits": {**manifest.splits, "val": Split(rows=0, shards=())}})
    with pytest.raises(UserError, match=r"evaluation.train_split: got val; allowed: train, test"):
        check_splits(bare, tiny_config(evaluation={"train_split": "val"}))
