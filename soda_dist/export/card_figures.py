"""Figures of an evaluation's results, as rows of a model card."""

import html
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from soda_dist.runs.results import MEASURES, TASKS, Result

ASIDE = {
    *("data", "provenance", "seed", "seconds", "step", "ema", "weights", "settings", "limits", "unreadable", "details"),
}
"""Keys of a result, at any depth, that hold no figure: its origin, settings, and how long it took."""


@dataclass(frozen=True)
class Figure:
    """A number of a result, in the result's own unit, with its standard error if it has one."""

    name: str
    value: float
    error: float | None = None


@dataclass(frozen=True)
class Headline:
    """A measure that a card shows first, of the trained model and of the baselines where they were measured."""

    of: str
    measure: str
    title: str
    trained: Figure
    untrained: Figure | None
    pixels: Figure | None
    images: str
    split: str


def every_figure(result: Result) -> list[Figure]:
    """List the numbers of a result, named by their path in its file."""
    return [*_walk(result, "", str(result.get("metric", "value")))]


def _walk(tree: Any, path: str, name: str) -> Iterator[Figure]:
    if isinstance(tree, int | float) and not isinstance(tree, bool):
        yield Figure(escaped(path), tree)
    elif isinstance(tree, list):
        for place, part in enumerate(tree):
            yield from _walk(part, f"{path}[{place}]", "")
    elif isinstance(tree, dict):
        if _is_number(tree.get("value")):
            error = tree.get("standard_error")
            yield Figure(escaped(path or name), tree["value"], error if _is_number(error) else None)
        for key, part in tree.items():
            if key not in ASIDE and key not in ("value", "standard_error"):
                yield from _walk(part, f"{path}.{key}" if path else key, "")


def headlines(task: str, result: Result) -> list[Headline]:
    """List a task's main measures: the estimates of a classification, or else its `metric`."""
    counts = result.get("counts") or {}
    images = counts.get("test", counts.get("images"))
    shown = "" if images is None else f"{images:,}"
    split = (result.get("splits") or {}).get("test") or result.get("split") or ""
    of, found = TASKS.get(task, task.replace("_", " ")), _by_encoder(result)
    return [
        Headline(
            of=of,
            measure=measure,
            title=MEASURES.get(measure, escaped(measure.replace("_", " "))),
            trained=estimate,
            untrained=found.get("untrained", {}).get(measure),
            pixels=found.get("pixels", {}).get(measure),
            images=shown,
            split=escaped(str(split)),
        )
        for measure, estimate in found["trained"].items()
    ]


def _by_encoder(result: Result) -> dict[str, dict[str, Figure]]:
    """Return the main measures of the trained model and the baselines, by encoder and measure."""
    metric = str(result.get("metric", "value"))
    parts = result.get("encoders")
    encoders = {k: part for k, part in parts.items() if isinstance(part, dict)} if isinstance(parts, dict) else {}
    found = {name: _estimates(part.get("estimates")) for name, part in encoders.items()}
    if found.get("trained"):
        return found
    alone = {name: _estimates({metric: {"value": part.get(metric)}}) for name, part in encoders.items()}
    return {**alone, "trained": _estimates({metric: result})}


def cell(figure: Figure | None) -> str:
    """Format a figure and its error in the result's unit; empty without one."""
    if figure is None:
        return ""
    return f"{figure.value:.4g}" + ("" if figure.error is None else f" ± {figure.error:.2g}")


def _estimates(parts: Any) -> dict[str, Figure]:
    return {
        name: Figure(name, part["value"], error if _is_number(error := part.get("standard_error")) else None)
        for name, part in (parts if isinstance(parts, dict) else {}).items()
        if isinstance(part, dict) and _is_number(part.get("value"))
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def escaped(text: str) -> str:
    """Keep text of a result's file from ending a line or a table's cell, and from adding HTML."""
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|")
