"""Pieces of a split: each drawn row once and in order; labels and splits as users name them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from soda_dist.data.shards import Split, read_manifest
from soda_dist.data.storage.folder import open_folder
from soda_dist.errors import UserError
from soda_dist.evaluation.pieces import Features, check_splits, plan_pieces
from soda_dist.evaluation.rows import drawn_rows
from tests.tiny import tiny_config


@pytest.mark.parametrize("limit", [None, 1, 10, 16, 17, 31, 1000])
@pytest.mark.parametrize("batch", [1, 10, 16, 17, 500])
def test_pieces_cover_the_drawn_rows_once_and_in_order(limit: int | None, batch: int) -> None:
    groups = (10, 7, 10, 10, 8)
    drawn = drawn_rows(45, limit, 0, "train")
    pieces = plan_pieces("train", groups, drawn, batch)
    assert np.concatenate([p.keys for p in pieces]).tolist() == drawn.tolist()
    assert all(p.rows == len(p.keys) and p.first_row == p.keys[0] for p in pieces)
    group_of = np.repeat(np.arange(5), groups)
    for piece in pieces:
        assert piece.groups == tuple(np.unique(group_of[piece.keys]).tolist()), "no group is read in vain"
    last = [int((group_of[p.keys] == p.groups[-1]).sum()) for p in pieces]
    assert all(p.rows >= batch > p.rows - rows for p, rows in zip(pieces[:-1], last, strict=False)), "no larger"
    assert len({p.file for p in pieces}) == len(pieces)


def test_pieces_of_other_rows_have_other_names_and_all_rows_that_of_none() -> None:
    groups, names = (10, 10), set()
    for rows in ([0, 5], [0, 6], [0, 5, 6]):
        (piece,) = plan_pieces("train", groups, np.array(rows), 20)
        names.add(piece.file)
    assert len(names) == 3, "of equal first rows, two of equal size"
    assert plan_pieces("train", groups, np.arange(20), 20) == plan_pieces("train", groups, None, 20)


def test_a_row_without_a_value_is_told_when_it_is_asked_for() -> None:
    features = Features("test", np.arange(2), pa.table({"a": pa.array([1, None]), "b": pa.array([1, 2])}), {}, [])
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
