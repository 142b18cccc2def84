"""Novel views: which are asked for, whatever the number of sources."""

from pathlib import Path

import pytest

from soda_dist.config.load import with_fields
from soda_dist.data.shards import ShardReader
from soda_dist.errors import UserError
from soda_dist.evaluation.context import Context
from soda_dist.evaluation.images.view_sets import coverage, target_views
from tests.evaluation.contexts import context_of, without_model
from tests.models.methods import config_of


def _context(solids: Path, tmp_path: Path, **fields: object) -> Context:
    evaluation = {"novel_views": {"objects": 2, "views": 2}}
    config = config_of("rays", data={"sources": (1, 3)}, evaluation=evaluation)
    return context_of(without_model(config, solids), tmp_path, **fields)


def test_views_asked_for_do_not_depend_on_the_number_of_sources(solids: Path, tmp_path: Path) -> None:
    context = _context(solids, tmp_path)
    owner = ShardReader(context.data, context.manifest, "test").column("object").to_pylist()
    keys = {}
    for sources in (1, 3):
        pieces = target_views(context, sources, "own", 2)
        keys[sources] = [key for piece in pieces for key in piece.keys]
        for piece in pieces:
            for key, given in zip(piece.keys, piece.sources, strict=True):
                assert len(given) == sources and key not in given
                assert {owner[one] for one in given} == {owner[key]}
    assert keys[1] == keys[3] and len(keys[1]) == 2, "six views, of which five are never asked for"


def test_sources_are_drawn_and_more_of_them_contain_fewer(solids: Path, tmp_path: Path) -> None:
    context = _context(solids, tmp_path, **{"evaluation.novel_views.views": None})
    given = {n: [some for piece in target_views(context, n, "own", None) for some in piece.sources] for n in (1, 3)}
    assert all(many[:1] == few for few, many in zip(given[1], given[3], strict=True))
    first = {few[0] % 6 for few in given[1]}
    assert len(given[1]) == 4 and len(first) > 1, "four objects of six views, whose sources stand at several places"


def test_targets_are_all_views_outside_the_largest_number_of_sources(solids: Path, tmp_path: Path) -> None:
    context = _context(solids, tmp_path, **{"evaluation.novel_views.sources": [1, 2]})
    context.config = with_fields(context.config, {"evaluation.novel_views.views": None})
    pieces = target_views(context, 2, "own", None)
    asked = [key for piece in pieces for key in piece.keys]
    given = {key for piece in pieces for some in piece.sources for key in some}
    assert sorted([*asked, *given]) == list(range(24)) and len(given) == 8
    assert coverage(context, pieces) == {"views": 16, "of_views": 16, "objects": 4, "of_objects": 4}
    some = target_views(context, 1, "own", 3, limit=10)
    assert [key for piece in some for key in piece.keys] == asked[:10]
    assert coverage(context, some) == {"views": 10, "of_views": 16, "objects": 3, "of_objects": 4}
    assert {piece.file for piece in some}.isdisjoint(piece.file for piece in pieces), "others of the same places"


def test_more_sources_than_views_are_refused(solids: Path, tmp_path: Path) -> None:
    context = _context(solids, tmp_path, **{"evaluation.novel_views.sources": [1, 7]})
    with pytest.raises(UserError, match=r"7 sources of objects that have 6 views; allowed: 1\.\.5"):
        target_views(context, 1, "own", 2)
