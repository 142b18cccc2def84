"""Pictures of importances: the cells are the data, sections and names stand where they belong."""

from io import BytesIO
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from soda_dist.metrics.dci import section_scores
from soda_dist.plots.dci_importance import aggregated, importance_figure, importance_png, section_figure, section_png

NAMES = ["shape", "hue", "azimuth"]
BOUNDS = [(0, 4), (4, 9), (9, 12)]


def _importance(codes: int = 12) -> np.ndarray:
    return np.random.default_rng(0).gamma(0.3, size=(codes, 3))


def test_cells_are_each_factors_importance_relative_to_its_largest() -> None:
    importance = _importance()
    importance[:, 1] = 0.0
    axes = importance_figure(importance, NAMES, BOUNDS).axes[0]
    cells = np.asarray(axes.collections[0].get_array()).reshape(3, 12)
    np.testing.assert_allclose(cells[0], importance[:, 0] / importance[:, 0].max())
    np.testing.assert_allclose(cells[2], importance[:, 2] / importance[:, 2].max())
    assert (cells[1] == 0.0).all()
    assert axes.yaxis_inverted() and [label.get_text() for label in axes.get_yticklabels()] == NAMES


def test_lines_stand_between_sections_and_numbers_above_them() -> None:
    axes = importance_figure(_importance(), NAMES, BOUNDS).axes[0]
    assert [line.get_xdata()[0] for line in axes.lines] == [4, 9]
    above = axes.child_axes[0]
    assert above.get_xticks().tolist() == [2.0, 6.5, 10.5]
    assert [label.get_text() for label in above.get_xticklabels()] == ["1", "2", "3"]


def test_many_codes_are_summed_in_groups_that_lose_nothing() -> None:
    importance = _importance(1100)
    summed, edges = aggregated(importance, 512)
    assert edges.tolist() == [*range(0, 1100, 3), 1100] and len(summed) == 367
    np.testing.assert_allclose(summed, [importance[a:b].sum(axis=0) for a, b in pairwise(edges)])
    same, each = aggregated(importance[:512], 512)
    np.testing.assert_array_equal(same, importance[:512])
    assert each.tolist() == list(range(513))
    axes = importance_figure(importance, NAMES, [(0, 500), (500, 1100)]).axes[0]
    np.testing.assert_allclose(
        np.asarray(axes.collections[0].get_array()).reshape(3, 367), (summed / summed.max(axis=0)).T
    )
    assert axes.get_xlabel() == "code of z, sums of 3" and axes.get_xlim() == (0.0, 1100.0)


def test_sections_show_their_shares_in_colour_and_figures_and_the_scores() -> None:
    scores = section_scores(_importance(), BOUNDS)
    axes = section_figure(scores, NAMES).axes[0]
    np.testing.assert_array_equal(np.asarray(axes.collections[0].get_array()).reshape(3, 3), scores.share.T)
    written = {text.get_position(): text.get_text() for text in axes.texts}
    assert written == {(s + 0.5, f + 0.5): f"{scores.share[s, f]:.2f}" for s in range(3) for f in range(3)}
    assert f"D {scores.disentanglement:.3f}" in axes.get_xlabel()
    assert f"C {scores.completeness:.3f}" in axes.get_xlabel()


def test_the_pngs_are_the_same_each_time_and_have_colours() -> None:
    importance = _importance(2048)
    bounds = [(0, 1000), (1000, 2048)]
    for draw in (
        lambda: importance_png(importance, NAMES, bounds),
        lambda: section_png(section_scores(importance, bounds), NAMES),
    ):
        assert draw() == draw()
        pixels = np.asarray(Image.open(BytesIO(draw())).convert("RGB"))
        assert pixels.shape[1] > 400 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def test_names_and_bounds_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"importance: got \[12, 3\] for 2 names"):
        importance_figure(_importance(), NAMES[:2], BOUNDS)
    for bounds in ([(0, 4), (5, 12)], [(0, 4)], []):
        with pytest.raises(ValueError, match=r"bounds: got .* from 0 to 12"):
            importance_figure(_importance(), NAMES, bounds)
    with pytest.raises(ValueError, match="names: got 2; allowed: 3"):
        section_figure(section_scores(_importance(), BOUNDS), NAMES[:2])
