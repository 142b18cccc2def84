"""Figure 9: each point is a row of the sweep, in the panel and on the line that it belongs to."""

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from PIL import Image

from soda_dist.plots.curves import ACCENT, FAINT
from soda_dist.plots.guidance_sweep import sweep_figure, sweep_png


def _row(guidance: float, steps: int, *, error: float | None = 0.5, **scores: float) -> dict[str, Any]:
    estimates = {name: {"value": value, "standard_error": error} for name, value in scores.items()}
    return {"guidance": guidance, "steps": steps, "counts": {"images": 4, "unreadable": 0}, **estimates}


CROSS = [
    _row(2.0, 100, psnr=20.0, ssim=0.7),
    _row(1.0, 100, psnr=18.0, ssim=0.6),
    _row(3.0, 100, psnr=19.0, ssim=0.65),
    _row(2.0, 250, psnr=19.5, ssim=0.68),
    _row(2.0, 20, psnr=21.0, ssim=0.75),
]


def _lines(axes: Axes) -> list[list[tuple[float, float]]]:
    """The points of each line, which has two or more."""
    found = [list(zip(*map(list, line.lines[0].get_data()), strict=True)) for line in axes.containers]
    assert all(len(line) > 1 for line in found)
    return found


def test_guidance_is_on_the_left_and_steps_on_the_right_measure_by_measure() -> None:
    figure = sweep_figure(CROSS)
    left, right, below, last = figure.axes
    assert _lines(left) == [[(1.0, 18.0), (2.0, 20.0), (3.0, 19.0)]]
    assert _lines(right) == [[(20, 21.0), (100, 20.0), (250, 19.5)]]
    assert _lines(below) == [[(1.0, 0.6), (2.0, 0.7), (3.0, 0.65)]]
    assert _lines(last) == [[(20, 0.75), (100, 0.7), (250, 0.68)]]
    assert (left.get_ylabel(), below.get_ylabel()) == ("PSNR, dB ↑", "SSIM ↑")
    assert (below.get_xlabel(), last.get_xlabel()) == ("guidance, at 100 steps", "sampling steps, at guidance 2")
    assert [text.get_text() for text in last.get_xticklabels()] == ["20", "100", "250"]


def test_bars_are_standard_errors_and_the_full_dot_is_the_first_row() -> None:
    for axes, x in zip(sweep_figure(CROSS).axes[:2], (2.0, 100), strict=True):
        (bars,) = axes.containers[0].lines[2]
        ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
        middles = [y for _, y in _lines(axes)[0]]
        np.testing.assert_allclose(ends, [[y - 0.5, y + 0.5] for y in middles])
        dot = axes.lines[-1]
        assert (list(dot.get_xdata()), list(dot.get_ydata())) == ([x], [20.0])
        assert to_hex(dot.get_markerfacecolor()) == ACCENT


def test_lpips_and_fid_have_panels_where_they_are_measured() -> None:
    rows = [
        _row(2.0, 20, psnr=20.0, ssim=0.7, lpips=0.3),
        _row(1.0, 20, psnr=18.0, ssim=0.6, lpips=0.4),
    ]
    for row, value in zip(rows, (11.0, 13.0), strict=True):
        row["fid"] = {"value": value, "standard_error": None}
    figure = sweep_figure(rows)
    assert [axes.get_ylabel() for axes in figure.axes] == ["PSNR, dB ↑", "SSIM ↑", "LPIPS ↓", "FID ↓"]
    assert _lines(figure.axes[3]) == [[(1.0, 13.0), (2.0, 11.0)]]
    assert not figure.axes[3].containers[0].has_yerr and figure.axes[2].containers[0].has_yerr


def test_a_whole_grid_has_a_line_for_each_number_of_steps_and_names_them() -> None:
    rows = [_row(w, n, psnr=10 * w + n, ssim=0.5) for n in (4, 2) for w in (1.0, 2.0)]
    left, right, *_, below = sweep_figure(rows).axes
    assert _lines(left) == [[(1.0, 14.0), (2.0, 24.0)], [(1.0, 12.0), (2.0, 22.0)]]
    assert len(_lines(right)) == 2
    assert [to_hex(line.lines[0].get_color()) for line in left.containers] == [ACCENT, FAINT]
    assert [text.get_text() for text in below.get_legend().get_texts()] == ["guidance 1", "guidance 2"]
    assert below.get_xlabel() == "sampling steps"


@pytest.mark.parametrize(("rows", "panels"), [(CROSS[:1], None), (CROSS[:3], 2), ([CROSS[0], CROSS[3]], 2)])
def test_what_does_not_vary_has_no_panel(rows: list[dict[str, Any]], panels: int | None) -> None:
    figure, png = sweep_figure(rows), sweep_png(rows)
    if panels is None:
        assert figure is None and png is None
    else:
        assert len(figure.axes) == panels and png == sweep_png(rows)
        assert Image.open(BytesIO(png)).size[0] > 400
