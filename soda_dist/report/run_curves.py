"""Curves of a run, or of several together: of its training, and of its results by checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from soda_dist.plots.curves import CURVES, LARGEST, Curve, Series, curve_svg
from soda_dist.report.measures import MEASURES, plain_text, task_title, title_of
from soda_dist.runs.results import Result

VALIDATION_PREFIX = "validation_"
MOST_CURVES = 24
Lines = list[dict[str, Any]]


@dataclass(frozen=True)
class Plot:
    """A drawn curve with its title."""

    title: str
    svg: Markup


def training_curves(runs: Sequence[Lines]) -> list[Plot]:
    """Draw each quantity of the runs' metrics.jsonl that any of them has, one line for each run."""
    names = {name for lines in runs for line in lines for name in line}
    validation = [_validation_curve(name) for name in sorted(names) if name.startswith(VALIDATION_PREFIX)]
    plots = []
    for curve in (CURVES[0], *validation[: MOST_CURVES - len(CURVES)], *CURVES[1:]):
        series = [_series(lines, curve.field) for lines in runs]
        if curve.field in names and any(map(_drawable, series)):
            plots.append(Plot(curve.title, Markup(curve_svg(curve, *series))))
    return plots


def result_curves(results: dict[tuple[str, bool], dict[int, Result]]) -> list[Plot]:
    """Draw the headline of each task, with its standard error, by checkpoint, where more than one was evaluated."""
    plots = []
    for (task, ema), by_step in results.items():
        known = {step: result for step, result in sorted(by_step.items()) if is_number(result.get("value"))}
        metrics = {str(result.get("metric")) for result in known.values()}
        if len(known) > 1 and len(metrics) == 1:
            (metric,) = metrics
            percent = metric in MEASURES and MEASURES[metric].percent
            errors = [as_number(result.get("standard_error")) for result in known.values()]
            values = [result["value"] for result in known.values()]
            series = Series(list(known), values, errors)
            curve = Curve(
                f"{task}-{ema}", f"{task_title(task, ema=ema)}: {title_of(metric)}", "percent" if percent else ""
            )
            if _drawable(series):
                plots.append(Plot(curve.title, Markup(curve_svg(curve, series))))
    return plots


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def as_number(value: Any) -> float:
    """Return a number as a float, everything else as 0."""
    return float(value) if is_number(value) else 0.0


def _validation_curve(name: str) -> Curve:
    measured = name.removeprefix(VALIDATION_PREFIX)
    share = (measured in MEASURES and MEASURES[measured].percent) or measured.endswith("accuracy")
    title = f"Validation {plain_text(title_of(measured))}"
    if share:
        return Curve(name, title, "percent")
    return Curve(name, title, "log" if measured == "loss" else "")


def _series(lines: Lines, name: str) -> Series:
    known = [line for line in lines if line.get(name) is not None]
    return Series([line["step"] for line in known], [line[name] for line in known])


def _drawable(series: Series) -> bool:
    return any(abs(value) < LARGEST for value in series.values)
