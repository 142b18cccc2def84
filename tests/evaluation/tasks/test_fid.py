"""The task fid: which sets a run has, what is held against what, and what it refuses; with quick features."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from soda_dist.config.load import with_fields
from soda_dist.errors import UserError
from soda_dist.evaluation.context import Context
from soda_dist.evaluation.images import generated_sets
from soda_dist.evaluation.images.generated_sets import ImageSet, SetPiece, folder_of, load_set, plan_images
from soda_dist.evaluation.images.scores import images_of
from soda_dist.evaluation.images.view_sets import target_views
from soda_dist.evaluation.tasks import fid as task
from soda_dist.metrics.distributions import kid, precision_recall
from tests.evaluation.contexts import context_of, voiced, without_model
from tests.evaluation.images.colours import FACTS, colours, slow_fid, stand_in
from tests.evaluation.small_run import prepare
from tests.models.methods import config_of


def _context(name: str, data: Path, run: Path, *, drawn: bool = True, **fields: Any) -> tuple[Context, list[str]]:
    """A run whose weights hear z; `drawn`: whether it has a model to draw with."""
    config = with_fields(config_of(name, evaluation={"batch": 5}, sampling={"steps": 2}), fields)
    said: list[str] = []
    return context_of((voiced if drawn else without_model)(config, data), run, said), said


def _images(context: Context, pieces: Sequence[SetPiece]) -> tuple[np.ndarray, np.ndarray]:
    """What was drawn, and what it is held against."""
    table = load_set(folder_of(context, pieces[0].image_set), pieces, ["image", "target"])
    return images_of(table.column("image")), images_of(table.column("target"))


def test_each_set_is_held_against_as_many_images_of_the_test_split(
    small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch)
    monkeypatch.setattr(generated_sets, "PIECE", 4)
    context, said = _context("soda", small_set, tmp_path, **{"evaluation.fid.images": 30})
    result = task.measure(context)
    assert list(result["sets"]) == ["reconstruction", "samples"] and context.place.read_json("fid.json") == result
    found = {}
    for kind, scores in result["sets"].items():
        drawn, real = _images(context, plan_images(context, ImageSet(kind, "test", context.config.sampling), 30))
        assert scores["counts"] == {"images": 29, "unreadable": 1} and len(drawn) == 29
        assert scores["fid"] == {"value": pytest.approx(slow_fid(drawn, real), rel=1e-6), "standard_error": None}
        features = [torch.from_numpy(colours(each)) for each in (drawn, real)]
        distance, share = kid(*features, subset_size=29), precision_recall(*features)
        assert scores["kid_subset"] == 29
        assert scores["kid"]["value"] == pytest.approx(distance.mean, abs=1e-9)
        assert (scores["precision"]["value"], scores["recall"]["value"]) == (share.precision, share.recall)
        for name in ("precision", "recall"):
            p = scores[name]["value"]
            assert scores[name]["standard_error"] == pytest.approx((p * (1 - p) / 29) ** 0.5)
        assert any(line.startswith(f"FID of {kind}, 29 images: {scores['fid']['value']:.2f}, KID") for line in said)
        found[kind] = scores["fid"]["value"]
    assert found["reconstruction"] != found["samples"]
    assert result["value"] == found["reconstruction"] and result["counts"] == {"images": 29, "unreadable": 1}
    assert result["inception"] == FACTS
    assert "FID used non-standard Inception weights; not comparable with published values" in said


def test_kid_is_over_subsets_of_the_first_features(
    small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch)
    monkeypatch.setattr(task, "KID_SUBSET_SIZE", 5)
    fields = {"evaluation.fid.images": 29, "evaluation.fid.feature_images": 8}
    context, _ = _context("soda", small_set, tmp_path, **fields, **{"evaluation.fid.sets": ["reconstruction"]})
    scores = task.measure(context)["sets"]["reconstruction"]
    drawn, real = _images(
        context, plan_images(context, ImageSet("reconstruction", "test", context.config.sampling), 29)
    )
    distance = kid(*(torch.from_numpy(colours(each[:8])) for each in (drawn, real)), subset_size=5)
    assert scores["kid_subset"] == 5 and scores["kid"]["value"] == pytest.approx(distance.mean, abs=1e-9)
    assert scores["kid"]["standard_error"] == pytest.approx(distance.std / 10, abs=1e-9), "a hundred subsets"
    assert scores["fid"]["value"] == pytest.approx(slow_fid(drawn, real), rel=1e-6), "of all images"


@pytest.mark.parametrize(("count", "has"), [(3, False), (4, True)])
def test_precision_needs_more_images_than_neighbours(
    count: int, has: bool, small_set: Path, tmp_path: Path, monkeypatch
) -> None:
    stand_in(monkeypatch)
    fields = {"evaluation.fid.images": count, "evaluation.fid.sets": ["samples"], "seed": 3}
    context, _ = _context("soda", small_set, tmp_path, **fields)
    assert ("precision" in task.measure(context)["sets"]["samples"]) is has


def test_novel_views_are_those_of_the_runs_own_sources_up_to_a_limit(
    solids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch)
    fields = {"evaluation.fid.images": 3, "evaluation.fid.sets": ["novel_views"], "data.sources": [1, 3]}
    context, _ = _context("rays", solids, tmp_path, **fields, **{"sampling.sources": 2, "sampling.steps": 2})
    scores = task.measure(context)["sets"]["novel_views"]
    pieces = target_views(context, 2, "own", 3)
    assert scores["counts"] == {"images": 3, "unreadable": 0}
    assert scores["folder"] == folder_of(context, pieces[0].image_set).uri
    drawn, real = _images(context, target_views(context, 2, "own", 3, limit=3))
    assert scores["fid"]["value"] == pytest.approx(slow_fid(drawn, real), rel=1e-6)


def test_a_split_with_one_readable_image_is_the_users_to_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    prepare(str(tmp_path / "data"), {"train": [[4]], "test": [[3]]}, {"test": {0, 2}})
    context, _ = _context("soda", tmp_path / "data", tmp_path / "run")
    with pytest.raises(UserError, match=r"evaluation\.fid\.images: got 1 readable images; allowed: two or more"):
        task.measure(context)


SETS = {
    "soda": ["reconstruction", "samples"],
    "unconditional": ["samples"],
    "palette": ["reconstruction"],
    "encdec": ["reconstruction"],
    "rays": ["reconstruction", "samples", "novel_views"],
    "palette with rays": ["reconstruction", "novel_views"],
}
KINDS = ("reconstruction", "samples", "novel_views")


@pytest.mark.parametrize("name", SETS)
def test_a_run_has_the_sets_that_it_can_draw_and_no_other(
    name: str, small_set: Path, solids: Path, tmp_path: Path
) -> None:
    (tmp_path / "weights.pth").write_bytes(b"")
    place = solids if "rays" in name else small_set
    weights = {"evaluation.inception.weights": str(tmp_path / "weights.pth")}
    for kind in KINDS:
        context, _ = _context(name, place, tmp_path, drawn=False, **weights, **{"evaluation.fid.sets": [kind]})
        message = rf"evaluation\.fid\.sets: got {kind}; allowed: {', '.join(SETS[name])} with this run"
        with nullcontext() if kind in SETS[name] else pytest.raises(UserError, match=message):
            task.check(context)
    context, _ = _context(name, place, tmp_path, drawn=False, **weights)
    task.check(context)


def test_what_is_missing_is_told_before_any_work(small_set: Path, solids: Path, tmp_path: Path) -> None:
    context, _ = _context("soda", small_set, tmp_path, drawn=False)
    with pytest.raises(UserError, match=r"evaluation\.inception\.weights: got nothing"):
        task.check(context)
    (tmp_path / "weights.pth").write_bytes(b"")
    many = {"data.sources": [1, 7], "sampling.sources": 7}
    fields = {"evaluation.inception.weights": str(tmp_path / "weights.pth"), **many}
    context, _ = _context("rays", solids, tmp_path, drawn=False, **fields)
    with pytest.raises(UserError, match="7 sources of objects that have 6 views"):
        task.check(context)
    context.config = with_fields(context.config, {"evaluation.fid.sets": ["samples"]})
    task.check(context)
