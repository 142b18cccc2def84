"""Heat maps of DCI's importance matrix by code and by section of z (section E.3)."""

from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from soda_dist.metrics.dci import SectionScores
from soda_dist.plots.curves import GRID, INK, STYLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]
Bounds = Sequence[tuple[int, int]]

MOST_COLUMNS = 512
"""Maximum number of columns; more codes are summed in equal groups, to keep a column at least a pixel wide."""
LEGIBLE = 0.6
"""Share from which the cell is dark enough for white text."""


def importance_figure(importance: Floats, names: Sequence[str], bounds: Bounds) -> "Figure":
    """Draw factors by codes: importance relative to the factor's largest, with lines between sections of z.

    Args:
        importance: float [D, K], finite, non-negative.
        names: of the K factors.
        bounds: (start, stop) of each section; contiguous from 0 to D.

    Raises:
        ValueError: names or bounds that do not match `importance`.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    _check(importance, names, bounds)
    shown, edges = aggregated(importance, MOST_COLUMNS)
    largest = shown.max(axis=0)
    relative = np.divide(shown, largest, out=np.zeros_like(shown), where=largest > 0)
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(9.6, 1.3 + 0.3 * len(names)), layout="constrained")
        axes = figure.add_subplot()
        mesh = axes.pcolormesh(edges, np.arange(len(names) + 1), relative.T, cmap="Blues", vmin=0.0, vmax=1.0)
        axes.invert_yaxis()
        axes.set_yticks(np.arange(len(names)) + 0.5, names, color=INK)
        for start, _ in bounds[1:]:
            axes.axvline(start, color=INK, linewidth=0.8)
        axes.set_xlabel("code of z" if edges[1] == 1 else f"code of z, sums of {edges[1]}")
        above = axes.secondary_xaxis("top")
        above.set_xticks([(start + stop) / 2 for start, stop in bounds], [f"{n}" for n in range(1, len(bounds) + 1)])
        above.set_xlabel("section")
        bar = figure.colorbar(mesh, ax=axes, pad=0.01, aspect=12)
        bar.set_label("relative to the factor's largest")
        bar.outline.set_visible(False)
        figure.canvas.draw()  # lays out the axes while the style applies
    return figure


def section_figure(scores: SectionScores, names: Sequence[str]) -> "Figure":
    """Draw factors by sections of z: each section's share of the factor's importance, as colour and number.

    Raises:
        ValueError: names that do not match `scores`.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    share = scores.share
    if share.shape[1] != len(names):
        raise ValueError(f"names: got {len(names)}; allowed: {share.shape[1]}, one per factor")
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(2.4 + 0.62 * len(share), 1.3 + 0.36 * len(names)), layout="constrained")
        axes = figure.add_subplot()
        axes.pcolormesh(share.T, cmap="Blues", vmin=0.0, vmax=1.0, edgecolors=GRID, linewidth=0.5)
        axes.invert_yaxis()
        axes.set_yticks(np.arange(len(names)) + 0.5, names, color=INK)
        axes.set_xticks(np.arange(len(share)) + 0.5, [f"{number}" for number in range(1, len(share) + 1)])
        for (section, factor), value in np.ndenumerate(share):
            colour = "white" if value >= LEGIBLE else INK
            axes.text(section + 0.5, factor + 0.5, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
        axes.set_xlabel(f"section of z    D {scores.disentanglement:.3f}    C {scores.completeness:.3f}")
        figure.canvas.draw()
    return figure


def importance_png(importance: Floats, names: Sequence[str], bounds: Bounds) -> bytes:
    """Draw `importance_figure` as PNG."""
    return _png(importance_figure(importance, names, bounds))


def section_png(scores: SectionScores, names: Sequence[str]) -> bytes:
    """Draw `section_figure` as PNG."""
    return _png(section_figure(scores, names))


def aggregated(importance: Floats, most: int) -> tuple[Floats, NDArray[np.int64]]:
    """Sum importance [D, K] over the smallest equal groups of adjacent codes that leave at most `most` columns.

    Returns:
        Sums float [C, K], C <= `most`, and edges int64 [C + 1] from 0 to D; the last group may be smaller.
    """
    codes = len(importance)
    starts = np.arange(0, codes, -(-codes // most))
    return np.add.reduceat(importance, starts, axis=0), np.append(starts, codes)


def _check(importance: Floats, names: Sequence[str], bounds: Bounds) -> None:
    if importance.ndim != 2 or importance.shape[1] != len(names):
        raise ValueError(f"importance: got {list(importance.shape)} for {len(names)} names; allowed: [D, {len(names)}]")
    ends = [0, *(stop for _, stop in bounds)]
    if [start for start, _ in bounds] != ends[:-1] or ends[-1] != len(importance):
        raise ValueError(f"bounds: got {list(bounds)}; allowed: contiguous sections from 0 to {len(importance)}")


def _png(figure: "Figure") -> bytes:
    out = BytesIO()
    figure.savefig(out, format="png", dpi=150, metadata={"Software": None})
    return out.getvalue()
