"""Training curves as inline SVG."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
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

Unit = Literal["", "log", "rate", "percent", "scientific"]


@dataclass(frozen=True)
class Curve:
    """A quantity plotted over the images seen."""

    field: str
    """Key in metrics.jsonl."""
    title: str
    unit: Unit
    wide: bool


CURVES = (
    Curve("loss", "Loss", "log", True),
    Curve("probe_accuracy", "Online probe accuracy", "percent", True),
    Curve("lr", "Learning rate", "scientific", False),
    Curve("grad_norm", "Gradient norm", "log", False),
    Curve("images_per_second", "Throughput, image pairs per second", "rate", False),
    Curve("wait_fraction", "Time spent waiting for data", "percent", False),
)


def curve_figure(curve: Curve, images: Sequence[float], values: Sequence[float]) -> "Figure":
    """Draw a curve: logged values faint, their running mean bold."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 3.1) if curve.wide else (4.6, 2.5), layout="constrained")
        axes = figure.add_subplot()
        x, y = np.asarray(images, dtype=float), np.asarray(values, dtype=float)
        window = 0 if curve.unit == "scientific" else len(y) // SMOOTH_OVER
        smooth = _running_mean(y, window)
        if window > 1:
            axes.plot(x, y, color=FAINT, linewidth=1.0)
        axes.plot(x, smooth, color=ACCENT, linewidth=1.8, marker="o" if len(y) == 1 else None, markersize=5)
        axes.set_xlabel("image pairs seen")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.margins(x=0.01)
        _set_scale(axes, curve.unit, y[np.isfinite(y)])
        figure.canvas.draw()  # lays out the axes while the style applies
    return figure


def curve_svg(curve: Curve, images: Sequence[float], values: Sequence[float]) -> str:
    """Draw a curve as a self-contained SVG element without header and metadata."""
    import matplotlib as mpl

    figure = curve_figure(curve, images, values)
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
    return text.replace("<svg ", f'<svg role="img" aria-label="{curve.title}" ', 1)


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
