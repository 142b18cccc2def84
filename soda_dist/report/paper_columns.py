"""What an evaluated run holds, read from its folder alone: configuration, results of one step, data, budget."""

import math
import shlex
from dataclasses import dataclass
from typing import Any

from soda_dist.report.paper import Column
from soda_dist.runs.results import Evaluated, at


@dataclass(frozen=True)
class Ours:
    """Where our figure for a column of the paper lies.

    Attributes:
        task: `eval/STEP/TASK.json`, and the name that `jobs/evaluate.py --tasks` has for it.
        paths: of an estimate in that file, names with dots between; of several, the mean is taken. `{guidance}` is the
            scale of the run's own sampling, `{drawn}` the set that a method draws for a reconstruction, `{views}` the
            first entry of the column's number of sources, which are joined as in training.
        scale: what turns the estimate into the paper's unit.
        sources: path of the number of sources, where the file holds one number alone.
        options: what the command needs besides the task.
        without: methods that have no such figure.
    """

    task: str
    paths: tuple[str, ...]
    scale: float = 1.0
    sources: str = ""
    options: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


_PROBE = "encoders.trained.estimates"
_INCEPTION = ("evaluation.inception.weights=FILE",)
_LPIPS = ("evaluation.lpips.weights=FILE",)
_DCI = ("disentanglement", "completeness", "informativeness")
OURS = {
    "probe.top1": Ours("probe", (f"{_PROBE}.top1",), 100),
    "probe.top5": Ours("probe", (f"{_PROBE}.top5",), 100),
    "probe.macro_f1": Ours("probe", (f"{_PROBE}.macro_f1",), 100),
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
"""By the name that `paper.yaml` uses."""
WEIGHTS = {"fid": ("weights", "inception"), "lpips": ("lpips",)}
"""Where a result says whose weights a metric stands on, by metric: the first of these keys that it has."""
SAMPLING = {"reconstruction": "settings", "novel_views": "settings", "fid": "settings.sampling"}
"""Where a result of images says how they were drawn, by task."""


@dataclass(frozen=True)
class Figure:
    """A value in the paper's unit, and its standard error where one is known."""

    value: float
    error: float | None


def figure(run: Evaluated, column: Column) -> Figure | None:
    """Our figure for a column of the paper; none where it is not measured."""
    ours = OURS[column.ours]
    result = run.results.get(ours.task)
    if result is None or (ours.sources and at(result, ours.sources) != column.sources):
        return None
    estimates = [_estimate(_walk(run, result, path, column)) for path in ours.paths]
    values = [estimate.value for estimate in estimates if estimate is not None]
    if len(values) < len(estimates):
        return None
    error = estimates[0].error if len(estimates) == 1 and estimates[0] else None
    return Figure(ours.scale * math.fsum(values) / len(values), None if error is None else ours.scale * error)


def command(run: Evaluated, column: Column) -> str:
    """The command that measures a column's figure; words in capitals are the reader's to fill in."""
    ours = OURS[column.ours]
    data = run.data.uri if run.data else "URI"
    words = ["python", "jobs/evaluate.py", "--run", run.uri, "--data", data, "--tasks", ours.task]
    options = [f"sampling.sources={column.sources}"] if ours.sources else []
    if ours.task == "novel_views":
        options = [f"evaluation.novel_views.sources=[{column.sources}]"]
    return shlex.join([*words, "--step", str(run.step), *options, *ours.options])


def _walk(run: Evaluated, result: dict[str, Any], path: str, column: Column) -> Any:
    node: Any = result
    for part in path.split("."):
        if part == "{views}":
            node = _views(node, column.sources)
        else:
            node = node.get(_filled(run, result, part)) if isinstance(node, dict) else None
    return node


def _filled(run: Evaluated, result: dict[str, Any], part: str) -> str:
    if part == "{guidance}":
        own = at(result, SAMPLING["reconstruction"] + ".guidance")
        return "1" if run.field("method") == "encdec" or own is None else f"{own:g}"
    if part == "{drawn}":
        return "samples" if run.field("method") == "unconditional" else "reconstruction"
    return part


def _views(sets: Any, sources: int | None) -> Any:
    return next((entry for entry in sets or () if entry.get("sources") == sources), None)


def _estimate(found: Any) -> Figure | None:
    """An estimate with its error, or a number without one."""
    if isinstance(found, int | float):
        return Figure(float(found), None)
    if isinstance(found, dict) and found.get("value") is not None:
        error = found.get("standard_error")
        return Figure(float(found["value"]), None if error is None else float(error))
    return None
