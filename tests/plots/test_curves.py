"""Curves: the values are those given, and the SVG stands by itself."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from soda_dist.plots.curves import CURVES, MOST_POINTS, SMOOTH_OVER, Curve, Series, curve_figure, curve_svg

STEPS = list(range(2, 802, 2))


def _values(curve: Curve) -> list[float]:
    noise = np.random.default_rng(0).random(len(STEPS))
    if curve.field == "wait_fraction":
        return list(0.02 * noise)
    return list(np.exp(-np.arange(len(STEPS)) / 50) + 0.01 + 0.01 * noise)


@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve.field)
def test_the_faint_line_is_the_data_and_the_bold_one_its_running_mean(curve: Curve) -> None:
    values = np.array(_values(curve))
    lines = curve_figure(curve, Series(STEPS, values)).axes[0].lines
    np.testing.assert_array_equal(lines[0].get_xdata(), STEPS)
    np.testing.assert_array_equal(lines[0].get_ydata(), values)
    if curve.field == "lr":
        assert len(lines) == 1
        return
    window = len(values) // SMOOTH_OVER
    half = window // 2
    for place in (half, 200, len(values) - 1 - half):
        expected = values[place - half : place - half + window].mean()
        assert lines[1].get_ydata()[place] == pytest.approx(expected)


def test_a_loss_that_falls_far_gets_a_logarithmic_axis_and_one_that_does_not_a_linear_one() -> None:
    loss = CURVES[0]
    assert curve_figure(loss, Series([1, 2], [1.0, 0.1])).axes[0].get_yscale() == "log"
    assert curve_figure(loss, Series([1, 2], [1.0, 0.9])).axes[0].get_yscale() == "linear"


def test_one_value_is_shown_as_a_point() -> None:
    line = curve_figure(CURVES[0], Series([64], [0.5])).axes[0].lines[0]
    assert line.get_marker() == "o"


def test_a_value_that_is_not_finite_does_not_break_the_curve() -> None:
    values = _values(CURVES[0])
    values[50] = float("nan")
    smooth = curve_figure(CURVES[0], Series(STEPS, values)).axes[0].lines[1].get_ydata()
    assert np.isfinite(smooth).all()
    assert smooth[50] == pytest.approx(np.nanmean(values[45:55]))


def test_a_long_series_is_thinned_and_keeps_its_ends_and_outliers() -> None:
    steps = np.arange(100_000)
    values = 1 + 0.1 * np.random.default_rng(0).random(len(steps))
    values[54_321], values[12_345] = 9.0, 0.2
    faint, bold = curve_figure(CURVES[0], Series(steps, values)).axes[0].lines
    assert len(faint.get_xdata()) <= MOST_POINTS + 1 and len(bold.get_xdata()) <= MOST_POINTS
    assert {54_321, 12_345} <= set(faint.get_xdata())
    assert (bold.get_xdata()[0], bold.get_xdata()[-1]) == (0, steps[-1])
    assert len(curve_svg(CURVES[0], Series(steps, values))) < 60_000


def test_several_series_have_a_line_each_in_colours_of_their_own() -> None:
    lines = curve_figure(CURVES[0], *(Series([1, 2], [1.0, level]) for level in (0.9, 0.8, 0.7))).axes[0].lines
    assert [line.get_ydata()[1] for line in lines] == [0.9, 0.8, 0.7]
    assert len({line.get_color() for line in lines}) == 3


@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve.field)
def test_the_svg_is_whole_the_same_each_time_and_refers_to_nothing_outside(curve: Curve) -> None:
    svg = curve_svg(curve, Series(STEPS, _values(curve)))
    assert svg == curve_svg(curve, Series(STEPS, _values(curve)))
    assert "http" not in svg and "metadata" not in svg
    root = ElementTree.fromstring(svg.replace("xlink:href", "href"))
    assert root.tag == "svg" and root.get("viewBox") and not root.get("width") and not root.get("height")
    defined = set(re.findall(r'\bid="([^"]+)"', svg))
    assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg)) <= {(d, "") for d in defined} | {
        ("", d) for d in defined
    }
