"""Figure 9: how like their originals reconstructions are, against guidance and against the number of sampling steps."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from soda_dist.plots.curves import ACCENT, FAINT, INK, MUTED, STYLE

MEASURES = {"psnr": "PSNR, dB ↑", "ssim": "SSIM ↑", "lpips": "LPIPS ↓", "fid": "FID ↓"}
"""By their names in a row of the sweep; the arrow says which way is better."""
AXES = {"guidance": ("guidance", "{:g} steps", "steps"), "steps": ("sampling steps", "guidance {:g}", "guidance")}
"""What varies along x, by its name in a row: the axis' label, a line's name, and what a line has in common."""
WIDTH, HEIGHT = 4.3, 2.1
MOST_TICKS = 8
"""Up to so many settings each have their tick."""

Row = dict[str, Any]
Lines = dict[float, list[Row]]


def sweep_figure(rows: Sequence[Row]) -> Figure | None:
    """A row of panels for each measure that `rows` have; none where nothing varies.

    Args:
        rows: `sweep` of reconstruction.json: `guidance`, `steps` and an estimate for each measure. The first is the
            run's own way of sampling, which is marked.
    """
    columns = {varied: lines for varied in AXES if (lines := lines_of(rows, varied))}
    if not columns:
        return None
    measures = [name for name in MEASURES if name in rows[0]]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH * len(columns), 0.3 + HEIGHT * len(measures)), layout="constrained")
        grid = figure.subplots(len(measures), len(columns), sharex="col", sharey="row", squeeze=False)
        for place, (varied, lines) in enumerate(columns.items()):
            for measure, axes in zip(measures, grid[:, place], strict=True):
                _draw(axes, lines, varied, measure, rows[0])
                axes.set_ylabel(MEASURES[measure] if place == 0 else "")
            _name(grid[-1, place], lines, varied)
        figure.align_ylabels()
        figure.canvas.draw()  # places the axes while the style holds
    return figure


def sweep_png(rows: Sequence[Row]) -> bytes | None:
    """`sweep_figure` as PNG."""
    figure = sweep_figure(rows)
    if figure is None:
        return None
    out = BytesIO()
    figure.savefig(out, format="png", dpi=120, metadata={"Software": None})
    return out.getvalue()


def lines_of(rows: Sequence[Row], varied: str) -> Lines:
    """Rows that differ in `varied`, in its order, by the value of the other setting; single rows make no line."""
    other = AXES[varied][2]
    lines: Lines = {}
    for row in rows:
        lines.setdefault(row[other], []).append(row)
    return {value: sorted(some, key=lambda row: row[varied]) for value, some in lines.items() if len(some) > 1}


def _draw(axes: Axes, lines: Lines, varied: str, measure: str, own: Row) -> None:
    """A line with a standard error at each point; the run's own line is bold, and its own way a full dot."""
    for value, line in lines.items():
        x = [row[varied] for row in line]
        y = [row[measure]["value"] for row in line]
        errors = [row[measure]["standard_error"] or 0.0 for row in line]
        first = value == own[AXES[varied][2]]
        colour = ACCENT if first else FAINT
        axes.errorbar(
            x, y, yerr=errors if any(errors) else None, color=colour, linewidth=1.8 if first else 1.2,
            elinewidth=1.0, capsize=2.5, marker="o", markersize=5, markerfacecolor="white",
            label=AXES[varied][1].format(value),
        )  # fmt: skip
    axes.plot([own[varied]], [own[measure]["value"]], marker="o", markersize=6, color=ACCENT, zorder=3)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.margins(x=0.06, y=0.12)


def _name(axes: Axes, lines: Lines, varied: str) -> None:
    """The label and the ticks of x; where there are several lines, their names."""
    label, line, _ = AXES[varied]
    if len(lines) == 1:
        label = f"{label}, at {line.format(next(iter(lines)))}"
    else:
        axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    axes.set_xlabel(label, color=MUTED)
    settings = sorted({row[varied] for some in lines.values() for row in some})
    if len(settings) <= MOST_TICKS:
        axes.set_xticks(settings, [f"{setting:g}" for setting in settings])
