"""Plot of a hyperparameter sweep: objective per trial and rung, and over each searched field."""

from io import BytesIO
from typing import TYPE_CHECKING, Any

from soda_dist.plots.curves import ACCENT, FAINT, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 3.2, 3.0


def sweep_plot(trials: list[dict[str, Any]], objective: str) -> bytes:
    """Draw `objective` at each rung of each trial, then one panel per searched field, as PNG.

    `trials` as in trials.json: `fields` by name, and under `objective` a dict step -> value.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    fields = list(trials[0]["fields"])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH * (1 + len(fields)), HEIGHT), layout="constrained")
        axes = figure.subplots(1, 1 + len(fields), sharey=True, squeeze=False)[0]
        _rungs(axes[0], trials, objective)
        for axis, field in zip(axes[1:], fields, strict=True):
            _scatter(axis, trials, field, objective)
        buffer = BytesIO()
        figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _rungs(axis: "Axes", trials: list[dict[str, Any]], objective: str) -> None:
    best = max((t for t in trials if t[objective]), key=lambda t: (t["step"], t[objective][t["step"]]), default=None)
    for trial in trials:
        steps = sorted(trial[objective])
        values, color = [trial[objective][step] for step in steps], ACCENT if trial is best else FAINT
        axis.plot(steps, values, marker="o", color=color, linewidth=1.5, markersize=4)
    axis.set_xlabel("step")
    axis.set_ylabel(objective)


def _scatter(axis: "Axes", trials: list[dict[str, Any]], field: str, objective: str) -> None:
    """Plot the last value of each trial; hollow if the trial was stopped early."""
    numeric = all(isinstance(t["fields"][field], int | float) for t in trials)
    for trial in trials:
        if not trial[objective]:
            continue
        value = trial["fields"][field] if numeric else str(trial["fields"][field])
        filled = ACCENT if trial["status"] == "finished" else "none"
        axis.scatter([value], [trial[objective][trial["step"]]], facecolor=filled, edgecolor=ACCENT, s=28)
    axis.set_xlabel(field)
