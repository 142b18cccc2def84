"""Results of older checkpoints: a row for each, so that a thousand of them stay one table."""

from dataclasses import dataclass

from soda_dist.report.measures import plain_text
from soda_dist.report.result_tables import TOLD, flat, path_title, too_large
from soda_dist.runs.results import Result

MOST_CELLS = 120_000
"""Cells of one task's older results."""


@dataclass(frozen=True)
class History:
    """All numbers of one task at older steps.

    Attributes:
        heads: titles of the columns; those of texts are left out.
        rows: step and the numbers, newest first; empty where a step lacks the number.
        same: title and number of what is equal at all of these steps.
        left_out: columns beyond MOST_CELLS.
    """

    heads: list[str]
    rows: list[tuple[int, list[str]]]
    same: list[tuple[str, str]]
    left_out: int


def history(by_step: dict[int, Result]) -> History | None:
    """Arrange the results of one task by step; None without any."""
    if not by_step:
        return None
    flattened = {step: _numbers(by_step[step]) for step in sorted(by_step, reverse=True)}
    paths = list(dict.fromkeys(path for found in flattened.values() for path in found))
    constant = [path for path in paths if len({found.get(path) for found in flattened.values()}) == 1]
    same = [(path_title(path), next(iter(flattened.values()))[path]) for path in constant if len(flattened) > 1]
    changing = [path for path in paths if path not in set(constant)] if len(flattened) > 1 else paths
    shown = changing[: max(1, MOST_CELLS // len(flattened))]
    rows = [(step, [found.get(path, "") for path in shown]) for step, found in flattened.items()]
    return History([path_title(path) for path in shown], rows, same, len(changing) - len(shown))


def _numbers(result: Result) -> dict[tuple[str, ...], str]:
    """Write every number of a result to six significant digits, standard errors beside their values."""
    if too_large(result):
        return {}
    rest = {name: value for name, value in result.items() if name not in ("step", "provenance")}
    found = {}
    for path, cell in flat({name: value for name, value in rest.items() if name not in TOLD}):
        if cell.value is not None:
            found[path] = exact(cell.value) + (f" ± {exact(cell.error)}" if cell.error is not None else "")
    if isinstance(rest.get("value"), int | float):
        error = rest.get("standard_error")
        headline = exact(rest["value"]) + (f" ± {exact(error)}" if isinstance(error, int | float) else "")
        found = {(plain_text(rest.get("metric") or "value"),): headline, **found}
    return found


def exact(value: float) -> str:
    """Write a number to six significant digits."""
    return str(value) if isinstance(value, int) and abs(value) < 10**15 else f"{value:.6g}"
