"""What tasks ask of a checkpoint under evaluation: rows, features made once, results where the report reads them."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from soda_dist.config.load import with_fields
from soda_dist.errors import UserError
from soda_dist.evaluation.context import Context
from soda_dist.evaluation.pieces import Point
from tests.evaluation.contexts import context_of, voiced, without_model
from tests.evaluation.local import Recording
from tests.tiny import tiny_config


@pytest.fixture
def context(small: Path, tmp_path: Path) -> Context:
    return context_of(without_model(tiny_config(), small / "data"), tmp_path)


def test_rows_are_those_of_the_split_up_to_the_limit(context: Context) -> None:
    assert (context.rows("train"), context.rows("test")) == (45, 30)
    limits = {"evaluation.max_train_images": 12, "evaluation.max_test_images": 1000}
    limited = replace(context, config=with_fields(context.config, limits))
    assert (limited.rows("train"), limited.rows("test")) == (12, 30)
    assert sum(piece.rows for piece in limited.pieces("train")) == 12
    assert (limited.rows("train", 20), limited.rows("train", 5)) == (12, 5)
    assert set(limited.drawn("train", 5)) < set(limited.drawn("train")) < set(context.drawn("train", 20))
    assert {piece.points for piece in limited.pieces("test", (Point("up.0", 3),))} == {(Point("up.0", 3),)}


def test_features_are_extracted_once_and_read_by_the_next_evaluation(small: Path, tmp_path: Path) -> None:
    models = voiced(tiny_config(), small / "data")
    first, second = (context_of(models, tmp_path, pool=Recording()) for _ in range(2))
    found = first.features("test", None)
    assert first.features("test", None) is found and len(first.workers.done) == len(first.pieces("test"))
    again = second.features("test", None)
    assert second.workers.done == [] and (again.arrays["trained"] == found.arrays["trained"]).all()
    assert again.unreadable == ["test/0.png"]


def test_fewer_than_two_readable_images_are_the_users_to_know(context: Context) -> None:
    context.check_readable("train", 2)
    with pytest.raises(UserError, match=r"evaluation\.train_split: got train with 1 readable images; allowed: two"):
        context.check_readable("train", 1)


@pytest.mark.parametrize(("ema", "place"), [(True, "eval/3"), (False, "eval/3/without-ema")])
def test_a_result_says_what_it_is_of_and_lies_with_its_pictures(
    context: Context, tmp_path: Path, ema: bool, place: str
) -> None:
    context = replace(context, ema=ema)
    result = context.record("knn", {"value": 0.5}, {"picture.png": b"png"}, time.monotonic() - 2)
    assert context.run.read_json(f"{place}/knn.json") == result
    assert (tmp_path / place / "picture.png").read_bytes() == b"png" and context.place.uri == str(tmp_path / place)
    assert {name: result[name] for name in ("task", "step", "ema", "weights", "value", "seed")} == {
        "task": "knn", "step": 3, "ema": ema, "weights": "0", "value": 0.5, "seed": 0,
    }  # fmt: skip
    assert result["data"]["rows"] == {"train": 45, "test": 30} and 2 <= result["seconds"] < 60
    assert result["provenance"]["packages"]["torch"]
