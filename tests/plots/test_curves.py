"""Curves: the values are those given, and the SVG stands by itself."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from soda_dist.plots.curves import CURVES, SMOOTH_OVER, Curve, curve_figure, curve_svg

IMAGES = list(range(64, 64 * 401, 64))


def _values(curve: Curve) -> list[float]:
    noise = np.random.default_rng(0).random(len(IMAGES))
    if curve.field == "wait_fraction":
        return list(0.02 * noise)
    return list(np.exp(-np.arange(len(IMAGES)) / 50) + 0.01 + 0.01 * noise)


@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve.field)
def test_the_faint_line_is_the_data_and_the_bold_one_its_running_mean(curve: Curve) -> None:
    values = np.array(_values(curve))
    lines = curve_figure(curve, IMAGES, values).axes[0].lines
    np.testing.assert_array_equal(lines[0].get_xdata(), IMAGES)
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
    assert curve_figure(loss, [1, 2], [1.0, 0.1]).axes[0].get_yscale() == "log"
    assert curve_figure(loss, [1, 2], [1.0, 0.9]).axes[0].get_yscale() == "linear"


def test_one_value_is_shown_as_a_point() -> None:
    line = curve_figure(CURVES[0], [64], [0.5]).axes[0].lines[0]
    assert line.get_marker() == "o"


def test_a_value_that_is_not_finite_does_not_break_the_curve() -> None:
    values = _values(CURVES[0])
    values[50] = float("nan")
    smooth = curve_figure(CURVES[0], IMAGES, values).axes[0].lines[1].get_ydata()
    assert np.isfinite(smooth).all()
    assert smooth[50] == pytest.approx(np.nanmean(values[45:55]))


@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve.field)
def test_the_svg_is_whole_the_same_each_time_and_refers_to_nothing_outside(curve: Curve) -> None:
    svg = curve_svg(curve, IMAGES, _values(curve))
    assert svg == curve_svg(curve, IMAGES, _values(curve))
    assert "http" not in svg and "metadata" not in svg
    root = ElementTree.fromstring(svg.replace("xlink:href", "href"))
    assert root.tag == "svg" and root.get("viewBox") and not root.get("width") and not root.get("height")
    defined = set(re.findall(r'\bid="([^"]+)"', svg))
    assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg)) <= {(d, "") for d in defined} | {
        ("", d) for d in defined
    }
