"""A result in words: its headline, and what was measured on what."""

from dataclasses import dataclass
from typing import Any

from soda_dist.report.measures import Cell, cell, plain_text, task_title, title_of
from soda_dist.runs.results import ENCODERS, Result, at

MOST_BESIDE = 4
BESIDE = {
    "dci": ("completeness", "informativeness"),
    "novel_views": ("nearest_source.{metric}", "mean_image.{metric}"),
    "reconstruction": (),
    "fid": ("sets.samples.fid", "sets.novel_views.fid"),
}
"""Task -> paths of numbers that belong beside its headline; those of encoders need none."""


@dataclass(frozen=True)
class Headline:
    """A task's newest main number.

    Attributes:
        beside: other numbers to judge it by, each a title and a cell.
    """

    task: str
    ema: bool
    step: int
    title: str
    measure: str
    value: Cell
    beside: list[tuple[str, Cell]]


def headline(task: str, ema: bool, step: int, result: Result) -> Headline | None:
    """Return the main number of a result; None if it has none."""
    metric = str(result.get("metric") or "")
    value = result.get("value")
    if not metric or not isinstance(value, int | float) or isinstance(value, bool):
        return None
    beside = _baselines(metric, result) or _beside(task, metric, result)
    main = cell(metric, value, result.get("standard_error"))
    return Headline(task, ema, step, task_title(task, ema=ema), title_of(metric), main, beside[:MOST_BESIDE])


def _baselines(metric: str, result: Result) -> list[tuple[str, Cell]]:
    found = []
    for name, title in list(ENCODERS.items())[1:]:
        scores = at(result, f"encoders.{name}")
        estimate = (
            at(scores, f"estimates.{metric}")
            if isinstance(scores, dict) and "estimates" in scores
            else at(scores, metric)
        )
        found += _cells(title, metric, estimate)
    return found


def _beside(task: str, metric: str, result: Result) -> list[tuple[str, Cell]]:
    found = []
    for path in BESIDE.get(task, ()):
        filled = path.format(metric=metric)
        parts = filled.split(".")
        title = title_of(parts[-1] if len(parts) == 1 else parts[-2])
        found += _cells(title, parts[-1], at(result, filled))
    return found


def _cells(title: str, name: str, estimate: Any) -> list[tuple[str, Cell]]:
    value = estimate.get("value") if isinstance(estimate, dict) else estimate
    error = estimate.get("standard_error") if isinstance(estimate, dict) else None
    return [(title, cell(name, value, error))] if isinstance(value, int | float) and not isinstance(value, bool) else []


def about(result: Result) -> str:
    """Say what was predicted, on which images, and what could not be read."""
    counts, splits = result.get("counts") or {}, result.get("splits") or {}
    parts = []
    if result.get("label"):
        classes = f" ({plain_text(result['classes'])} classes)" if result.get("classes") else ""
        parts.append(f"label {plain_text(result['label'])}{classes}")
    if "train" in counts and "train" in splits:
        parts.append(f"fitted on {counts['train']:,} images of {plain_text(splits['train'])}")
    tested, split = counts.get("test", counts.get("images")), splits.get("test") or result.get("split")
    if tested is not None:
        parts.append(f"measured on {tested:,} images" + (f" of {plain_text(split)}" if split else ""))
    text = ", ".join(parts)
    if result.get("majority"):
        text += f"; the most frequent class makes up {cell('majority', result['majority']).text}"
    if unread := sum(count for name, count in counts.items() if name.startswith("unreadable")):
        text += f"; {unread:,} images could not be read"
    return f"{text[:1].upper()}{text[1:]}." if text else ""
