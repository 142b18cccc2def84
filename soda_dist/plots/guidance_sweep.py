"""Reconstruction similarity over guidance and number of sampling steps (figure 9)."""

from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

from soda_dist.plots.curves import ACCENT, FAINT, INK, MUTED, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MEASURES = {"psnr": "PSNR, dB ↑", "ssim": "SSIM ↑", "lpips": "LPIPS ↓", "fid": "FID ↓"}
"""Key in a sweep row -> label; the arrow points to better values."""
AXES = {"guidance": ("guidance", "{:g} steps", "steps"), "steps": ("sampling steps", "guidance {:g}", "guidance")}
"""Key of the x value -> axis label, line label, and the key that is constant along a line."""
WIDTH, HEIGHT = 4.3, 2.1
MOST_TICKS = 8
"""Up to this number of settings, each gets a tick."""

Row = dict[str, Any]
Lines = dict[float, list[Row]]


def sweep_figure(rows: Sequence[Row]) -> "Figure | None":
    """Draw a row of panels per measure; return None if neither setting varies.

    Args:
        rows: `sweep` of reconstruction.json: `guidance`, `steps` and an estimate per measure. The first row, the
            run's own setting, is marked.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    columns = {varied: lines for varied in AXES if (lines := group_lines(rows, varied))}
    if not columns:
        return None
    measures = [name for name in MEASURES if name in rows[0]]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH * len(columns), 0.3 + HEIGHT * len(measures)), layout="constrained")
        grid = figure.subplots(len(measures), len(columns), sharex="col", sharey="row", squeeze=False)
        for place, (varied, lines) in enumerate(columns.items()):
            for measure, axes in zip(measures, grid[:, place], strict=True):
                _draw_lines(axes, lines, varied, measure, rows[0])
                axes.set_ylabel(MEASURES[measure] if place == 0 else "")
            _label_x(grid[-1, place], lines, varied)
        figure.align_ylabels()
        figure.canvas.draw()  # lays out the axes while the style applies
    return figure


def sweep_png(rows: Sequence[Row]) -> bytes | None:
    """Draw `sweep_figure` as PNG."""
    figure = sweep_figure(rows)
    if figure is None:
        return None
    out = BytesIO()
    figure.savefig(out, format="png", dpi=120, metadata={"Software": None})
    return out.getvalue()


def group_lines(rows: Sequence[Row], varied: str) -> Lines:
    """Group rows by the setting that is constant along a line, sorted by `varied`; single rows are dropped."""
    other = AXES[varied][2]
    lines: Lines = {}
    for row in rows:
        lines.setdefault(row[other], []).append(row)
    return {value: sorted(some, key=lambda row: row[varied]) for value, some in lines.items() if len(some) > 1}


def _draw_lines(axes: "Axes", lines: Lines, varied: str, measure: str, own: Row) -> None:
    """Draw lines with standard errors; the run's own line is bold and its own setting a filled dot."""
    from matplotlib.ticker import MaxNLocator

    for value, line in lines.items():
        x = [row[varied] for row in line]
        y = [row[measure]["value"] for row in line]
        errors = [row[measure]["standard_error"] or 0.0 for row in line]
        is_own = value == own[AXES[varied][2]]
        color, width = (ACCENT, 1.8) if is_own else (FAINT, 1.2)
        axes.errorbar(
            x, y, yerr=errors if any(errors) else None, color=color, linewidth=width, elinewidth=1.0, capsize=2.5,
            marker="o", markersize=5, markerfacecolor="white", label=AXES[varied][1].format(value),
        )  # fmt: skip
    axes.plot([own[varied]], [own[measure]["value"]], marker="o", markersize=6, color=ACCENT, zorder=3)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.margins(x=0.06, y=0.12)


def _label_x(axes: "Axes", lines: Lines, varied: str) -> None:
    """Set label and ticks of x; name the lines if there are several."""
    label, line, _ = AXES[varied]
    if len(lines) == 1:
        label = f"{label}, at {line.format(next(iter(lines)))}"
    else:
        axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    axes.set_xlabel(label, color=MUTED)
    settings = sorted({row[varied] for some in lines.values() for row in some})
    if len(settings) <= MOST_TICKS:
        axes.set_xticks(settings, [f"{setting:g}" for setting in settings])
