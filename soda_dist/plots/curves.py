"""Training curves as inline SVG."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from io import StringIO
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID, ACCENT, FAINT = "#24292f", "#6e7781", "#e6e8eb", "#1f6feb", "#a8c7f7"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": GRID,
    "axes.axisbelow": True,
}
SMOOTH_OVER = 40
"""The bold line is a centred mean over this fraction of the run: one fortieth."""
LOG_RATIO = 5.0
"""Ratio of largest to smallest value above which the axis is logarithmic."""
MOST_POINTS = 600
"""Points of a drawn line: longer series are thinned, so that a page of a long run stays small."""
LARGEST = 1e30
"""Values beyond it are not drawn."""
COLORS = (ACCENT, "#c2410c", "#15803d", "#7e22ce", "#0e7490", "#be185d", "#854d0e", "#475569")
"""Of several series in one plot, in order; later ones repeat them with dashes."""
DASHES = ("-", "--", ":", "-.")

Unit = Literal["", "log", "rate", "percent", "scientific"]


@dataclass(frozen=True)
class Curve:
    """A quantity plotted over the training steps."""

    field: str
    """Key in metrics.jsonl."""
    title: str
    unit: Unit


@dataclass(frozen=True)
class Series:
    """A quantity's values at steps in ascending order.

    Attributes:
        errors: standard errors, for values measured at a few steps; such values are marked one by one.
    """

    steps: Sequence[float]
    values: Sequence[float]
    errors: Sequence[float] | None = None


CURVES = (
    Curve("loss", "Loss", "log"),
    Curve("probe_accuracy", "Online probe accuracy", "percent"),
    Curve("lr", "Learning rate", "scientific"),
    Curve("images_per_second", "Throughput, image pairs per second", "rate"),
    Curve("wait_fraction", "Time spent waiting for data", "percent"),
    Curve("grad_norm", "Gradient norm", "log"),
)


def line_style(number: int) -> tuple[str, str]:
    """Return the colour and the dashes of the series `number` of a plot of several, counted from 0."""
    return COLORS[number % len(COLORS)], DASHES[number // len(COLORS) % len(DASHES)]


def curve_figure(curve: Curve, *series: Series) -> "Figure":
    """Draw a curve: one series faint with its running mean bold; of several, the running means."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.7, 2.6), layout="constrained")
        axes = figure.add_subplot()
        for number, each in enumerate(series):
            _draw(axes, curve, each, *line_style(number), alone=len(series) == 1)
        axes.set_xlabel("step")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        last = max([1, *(step for each in series for step in each.steps)])
        axes.set_xlim(0, 1.03 * min(last, LARGEST))
        drawn = np.concatenate([_values(each.values) for each in series])
        _set_scale(axes, curve.unit, drawn[np.isfinite(drawn)])
        figure.canvas.draw()  # lays out the axes while the style applies
    return figure


def curve_svg(curve: Curve, *series: Series) -> str:
    """Draw a curve as a self-contained SVG element without header and metadata."""
    import matplotlib as mpl

    figure = curve_figure(curve, *series)
    out = StringIO()
    with mpl.rc_context({**STYLE, "svg.hashsalt": curve.field}):
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=no_metadata)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'\s(?:xmlns(?::xlink)?)="[^"]*"', "", text)
    text = re.sub(r'\sid="(?:figure|axes|patch|line2d|text|matplotlib\.axis|xtick|ytick)_[0-9]+"', "", text)
    text = re.sub(r'(<svg [^>]*?)height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", text)
    label = escape(f"{curve.title} by step", quote=True)
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def _draw(axes: "Axes", curve: Curve, series: Series, color: str, dashes: str, *, alone: bool) -> None:
    x, y = np.asarray(series.steps, dtype=float), _values(series.values)
    if series.errors is not None:
        axes.errorbar(x, y, yerr=_values(series.errors), color=color, marker="o", markersize=4, linewidth=1.4)
        return
    window = 0 if curve.unit == "scientific" else len(y) // SMOOTH_OVER
    smooth = _running_mean(y, window)
    if window > 1 and alone:
        kept = _extremes(y)
        axes.plot(x[kept], y[kept], color=FAINT, linewidth=1.0)
    kept = _evenly(len(y))
    few = np.isfinite(y).sum() <= 3
    axes.plot(x[kept], smooth[kept], dashes, color=color, linewidth=1.8, marker="o" if few else None, markersize=4.5)


def _values(values: Sequence[float]) -> np.ndarray:
    """Return the values with those that cannot be drawn as NaN."""
    found = np.asarray(values, dtype=float)
    return np.where(np.abs(found) < LARGEST, found, np.nan)


def _evenly(count: int) -> np.ndarray:
    """Indices of at most MOST_POINTS of `count` points, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, MOST_POINTS)).round().astype(int))


def _extremes(values: np.ndarray) -> np.ndarray:
    """Indices of the smallest and the largest value of even stretches: a thinned line keeps its outliers."""
    if len(values) <= MOST_POINTS:
        return np.arange(len(values))
    stretches = np.array_split(np.arange(len(values)), MOST_POINTS // 2)
    low, high = np.nan_to_num(values, nan=np.inf), np.nan_to_num(values, nan=-np.inf)
    return np.unique([end for part in stretches for end in (part[low[part].argmin()], part[high[part].argmax()])])


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Average over a centred window, which is shorter at the ends."""
    if window < 2:
        return values
    kernel = np.ones(window)
    finite = np.isfinite(values)
    total = np.convolve(np.where(finite, values, 0.0), kernel, mode="same")
    count = np.convolve(finite.astype(float), kernel, mode="same")
    return total / np.maximum(count, 1.0)


def _set_scale(axes: "Axes", unit: Unit, finite: np.ndarray) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)
    if unit == "log" and low > 0 and high / low > LOG_RATIO:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        return
    axes.yaxis.set_major_locator(MaxNLocator(4))
    if unit in ("rate", "percent", "scientific"):
        axes.set_ylim(0.0, high * 1.1 if high > 0 else 1.0)
    if unit == "percent":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1 if high < 0.05 else 0))
    if unit == "scientific":
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.1e}" if value else "0"))
