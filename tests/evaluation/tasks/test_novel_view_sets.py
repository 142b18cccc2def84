"""The task novel_views: every number of sources and every way to join them is measured."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from soda_dist.config.load import with_fields
from soda_dist.errors import UserError
from soda_dist.evaluation.images import view_sets
from soda_dist.evaluation.images.sampling import SampleInputs
from soda_dist.evaluation.tasks.novel_views import _picture, _ways, draw_views
from tests.evaluation.contexts import context_of, voiced
from tests.models.methods import config_of


@pytest.mark.parametrize(
    ("fields", "sources", "ways"),
    [
        ({}, 1, ["own"]),
        ({"sampling.stochastic": True, "sampling.sources": 3}, 1, ["own"]),
        ({}, 3, ["own", "stochastic"]),
        ({"aggregation.kind": "transformer"}, 3, ["own", "mean", "stochastic"]),
        ({"sampling.stochastic": True, "sampling.sources": 3}, 3, ["stochastic", "own"]),
    ],
)
def test_the_configured_way_of_joining_sources_is_drawn_first(fields: dict, sources: int, ways: list[str]) -> None:
    assert _ways(with_fields(config_of("soda"), {"data.views": "object", **fields}), sources) == ways


def test_novel_views_are_measured_for_each_number_of_sources_and_way_to_join(solids: Path, tmp_path: Path) -> None:
    evaluation = {"images": 2, "novel_views": {"objects": 2, "views": 2}}
    aggregation = {"kind": "transformer", "depth": 1, "heads": 2}
    config = config_of(
        "rays", sampling={"steps": 2}, data={"sources": (1, 3)}, evaluation=evaluation, aggregation=aggregation
    )
    said: list[str] = []
    context = context_of(voiced(config, solids), tmp_path, said)
    result = draw_views(context)
    ways = [(row["sources"], row["aggregation"]) for row in result["sets"]]
    assert ways == [(1, "transformer")] + [(n, way) for n in (3, 5) for way in ("transformer", "mean", "stochastic")]
    assert all(row["counts"] == {"images": 2, "unreadable": 0} for row in result["sets"])
    three = {row["aggregation"]: row["psnr"]["value"] for row in result["sets"] if row["sources"] == 3}
    assert len(set(three.values())) == 3, "the ways differ"
    assert result["coverage"] == {"views": 2, "of_views": 4, "objects": 2, "of_objects": 4}
    for row in result["sets"]:
        assert 0 < row["angle"]["value"] <= 180 and sum(part["images"] for part in row["by_angle"]) == 2
        value = sum(part["images"] * part["psnr"]["value"] for part in row["by_angle"]) / 2
        assert value == pytest.approx(row["psnr"]["value"])
    angles = {row["sources"]: row["angle"]["value"] for row in result["sets"]}
    assert angles[1] >= angles[3] >= angles[5], "the nearest of more sources"
    assert context.place.read_json("novel_views.json")["sets"] == result["sets"]
    assert context.place.exists("novel_views.png")
    assert any(line.startswith("novel views from 3, stochastic: PSNR") for line in said)


def test_the_object_with_the_fewest_views_decides_how_many_sources_there_can_be(
    solids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of("rays")
    context = context_of(voiced(config, solids), tmp_path)
    monkeypatch.setattr(view_sets, "object_runs", lambda reader: [(0, 6), (6, 9), (9, 14)])
    assert view_sets.source_counts(context) == [1]
    context.config = with_fields(config, {"evaluation.novel_views.sources": [3]})
    with pytest.raises(UserError, match=r"got 3 sources of objects that have 3 views; allowed: 1\.\.2"):
        view_sets.source_counts(context)


def test_objects_with_fewer_targets_leave_the_rest_of_their_rows_white() -> None:
    """A source each and one or two targets: the second camera of the first object is missing."""
    pink = np.full((3, 8, 8, 3), (200, 30, 90), np.uint8)
    inputs = SampleInputs(np.arange(3), pink[:, None], None, pink, None)
    picture = np.asarray(Image.open(io.BytesIO(_picture(inputs, pink, [1, 2]))))
    cells = (picture == (200, 30, 90)).all(2).sum() / 112**2
    assert cells == 2 + 2 * 3, "the sources once, each target drawn and true"
