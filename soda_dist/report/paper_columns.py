"""Our figures for the paper's columns, read from the results of an evaluated run."""

import math
import shlex
from dataclasses import dataclass
from typing import Any

from soda_dist.report.paper import Column
from soda_dist.runs.results import Evaluated, at


@dataclass(frozen=True)
class Ours:
    """Location of our figure for a column of the paper, in `eval/STEP/TASK.json`."""

    task: str
    """Name in `jobs/evaluate.py --tasks`."""
    paths: tuple[str, ...]
    """Dotted paths of estimates, averaged. `{guidance}`: the run's guidance scale; `{drawn}`: the set sampled as
    reconstructions; `{views}`: the first entry with the column's number of sources, aggregated as in training."""
    scale: float = 1.0
    """Factor from the estimate to the paper's unit."""
    sources: str = ""
    """Path of the number of sources, if the file has results for one number only."""
    options: tuple[str, ...] = ()
    """Overrides that the command needs."""
    without: tuple[str, ...] = ()
    """Methods for which the figure is undefined."""


_ENCODER = "encoders.trained.estimates"
_INCEPTION = ("evaluation.inception.weights=FILE",)
_LPIPS = ("evaluation.lpips.weights=FILE",)
_DCI = ("disentanglement", "completeness", "informativeness")
OURS = {
    "probe.top1": Ours("probe", (f"{_ENCODER}.top1",), 100),
    "probe.top5": Ours("probe", (f"{_ENCODER}.top5",), 100),
    "knn.top1": Ours("knn", (f"{_ENCODER}.top1",), 100),
    "probe.macro_f1": Ours("probe", (f"{_ENCODER}.macro_f1",), 100),
    **{f"dci.{name}": Ours("dci", (name,), 100) for name in _DCI},
    "dci.mean": Ours("dci", _DCI, 100),
    "reconstruction.psnr": Ours("reconstruction", ("guidance.{guidance}.psnr",), without=("unconditional",)),
    "reconstruction.ssim": Ours("reconstruction", ("guidance.{guidance}.ssim",), without=("unconditional",)),
    "reconstruction.lpips": Ours(
        "reconstruction", ("guidance.{guidance}.lpips",), options=_LPIPS, without=("unconditional",)
    ),
    "reconstruction.fid": Ours("fid", ("sets.{drawn}.fid",), options=_INCEPTION),
    "novel_views.psnr": Ours("novel_views", ("sets.{views}.psnr",)),
    "novel_views.ssim": Ours("novel_views", ("sets.{views}.ssim",)),
    "novel_views.lpips": Ours("novel_views", ("sets.{views}.lpips",), options=_LPIPS),
    "novel_views.fid": Ours("fid", ("sets.novel_views.fid",), sources="settings.sampling.sources", options=_INCEPTION),
}
"""Keys are the names in `paper.yaml` and `yardsticks.py`."""
WEIGHTS = {"fid": ("weights", "inception"), "lpips": ("lpips",)}
"""Metric -> keys of a result that describe the metric's weights; the first present counts."""
SAMPLING = {"reconstruction": "settings", "novel_views": "settings", "fid": "settings.sampling"}
"""Task -> path of the sampling settings in its result."""


@dataclass(frozen=True)
class Figure:
    """A value in the paper's unit, with its standard error if known."""

    value: float
    error: float | None


def figure(run: Evaluated, column: Column) -> Figure | None:
    """Read our figure for a column of the paper; None if it was not measured."""
    ours = OURS[column.ours]
    result = run.results.get(ours.task)
    if result is None or (ours.sources and at(result, ours.sources) != column.sources):
        return None
    estimates = [_parse_estimate(_resolve(run, result, path, column)) for path in ours.paths]
    values = [estimate.value for estimate in estimates if estimate is not None]
    if len(values) < len(estimates):
        return None
    error = estimates[0].error if len(estimates) == 1 and estimates[0] else None
    return Figure(ours.scale * math.fsum(values) / len(values), None if error is None else ours.scale * error)


def scored_set(run: Evaluated, column: Column) -> dict[str, Any] | None:
    """Return the entry of the result that holds the figure, such as one set of drawn images; None if it has none."""
    ours = OURS[column.ours]
    found = _resolve(run, run.results.get(ours.task) or {}, ours.paths[0].rpartition(".")[0], column)
    return found if isinstance(found, dict) else None


def command(run: Evaluated, column: Column) -> str:
    """Format the command that measures a column's figure, with placeholders in capitals."""
    ours = OURS[column.ours]
    data = run.data.uri if run.data else "URI"
    words = ["python", "jobs/evaluate.py", "--run", run.uri, "--data", data, "--tasks", ours.task]
    options = [f"sampling.sources={column.sources}"] if ours.sources else []
    if ours.task == "novel_views":
        options = [f"evaluation.novel_views.sources=[{column.sources}]"]
    return shlex.join([*words, "--step", str(run.step), *options, *ours.options])


def _resolve(run: Evaluated, result: dict[str, Any], path: str, column: Column) -> Any:
    node: Any = result
    for part in path.split("."):
        if part == "{views}":
            node = next((entry for entry in node or () if entry.get("sources") == column.sources), None)
        else:
            node = node.get(_fill(run, result, part)) if isinstance(node, dict) else None
    return node


def _fill(run: Evaluated, result: dict[str, Any], part: str) -> str:
    if part == "{guidance}":
        own = at(result, SAMPLING["reconstruction"] + ".guidance")
        return "1" if run.field("method") == "encdec" or own is None else f"{own:g}"
    if part == "{drawn}":
        return "samples" if run.field("method") == "unconditional" else "reconstruction"
    return part


def _parse_estimate(found: Any) -> Figure | None:
    """Parse an estimate with its standard error, or a plain number."""
    if isinstance(found, int | float):
        return Figure(float(found), None)
    if isinstance(found, dict) and found.get("value") is not None:
        error = found.get("standard_error")
        return Figure(float(found["value"]), None if error is None else float(error))
    return None
