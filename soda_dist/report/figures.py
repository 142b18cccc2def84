"""Figures of disentanglement, novel views and FID, as rows of a run's report."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from soda_dist.runs.results import Result

MEASURES = {
    "disentanglement": ("disentanglement, %", 100, 1),
    "completeness": ("completeness, %", 100, 1),
    "informativeness": ("informativeness, %", 100, 1),
    "psnr": ("PSNR, dB", 1, 2),
    "ssim": ("SSIM", 1, 3),
    "lpips": ("LPIPS", 1, 3),
    "angle": ("angle to the nearest source, degrees", 1, 1),
    "fid": ("FID", 1, 2),
    "kid": ("KID", 1, 4),
    "precision": ("precision", 1, 3),
    "recall": ("recall", 1, 3),
}
"""Key in a result: title, factor, digits."""


@dataclass(frozen=True)
class Figure:
    """One measure of one set of images at one step.

    Attributes:
        of: what was measured.
        images: their number; None if the result does not record it.
        value: in the result's own unit, for the page's `data-value`.
        text: in the measure's unit.
        error: `± ` and the standard error, or empty.
    """

    step: int
    of: str
    images: int | None
    measure: str
    value: float
    text: str
    error: str


def figures(results: dict[tuple[int, str], Result]) -> list[Figure]:
    """List the figures of all steps, by (step, task), in the order of `results`."""
    return [figure for (step, task), result in results.items() for figure in _of_task(step, task, result)]


def _of_task(step: int, task: str, result: Result) -> Iterator[Figure]:
    counts = result.get("counts") or {}
    if task == "dci":
        yield from _rows(step, f"DCI over {len(result.get('factors', ()))} factors", counts.get("test"), result)
    elif task == "novel_views":
        for scored in result.get("sets", ()):
            joined = f", {scored['aggregation']}" if scored["sources"] > 1 else ""
            of = f"novel views, sources: {scored['sources']}{joined}"
            yield from _rows(step, of, (scored.get("counts") or counts).get("images"), scored)
    elif task == "fid":
        for kind, scored in result.get("sets", {}).items():
            yield from _rows(step, kind.replace("_", " "), (scored.get("counts") or counts).get("images"), scored)


def _rows(step: int, of: str, images: int | None, scored: dict[str, Any]) -> Iterator[Figure]:
    for name, (title, factor, digits) in MEASURES.items():
        found = scored.get(name)
        value, error = (found["value"], found["standard_error"]) if isinstance(found, dict) else (found, None)
        if value is not None:
            shown = "" if error is None else f"± {factor * error:.{digits}f}"
            yield Figure(step, of, images, title, value, f"{factor * value:.{digits}f}", shown)
