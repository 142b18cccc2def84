"""What an evaluated run holds, read from its folder alone: configuration, results of one step, data, budget."""

import math
import shlex
from dataclasses import dataclass
from typing import Any

import yaml

from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.errors import UserError
from soda_dist.report.paper import Column
from soda_dist.runs.metrics_log import METRICS, read_lines


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
class Data:
    """The prepared data of an evaluation, as a result records it: its URI, its kind and the rows of each split."""

    uri: str
    kind: str
    rows: dict[str, int]
    reencoded: dict[str, int | None] | None = None
    """`max_side` and `quality` of images that the import encoded anew; none: as published."""


@dataclass(frozen=True)
class Evaluated:
    """A run at one evaluated step.

    Attributes:
        uri: the run's folder.
        step: of the checkpoint.
        config: config.yaml as a tree.
        results: the JSON files of the step, by task.
        data: of the latest of these evaluations; none where no result says it.
        epochs: of training up to `step`; none where neither metrics.jsonl nor the data's rows tell.
    """

    uri: str
    step: int
    config: dict[str, Any]
    results: dict[str, dict[str, Any]]
    data: Data | None
    epochs: float | None

    def field(self, path: str) -> Any:
        """A field of the configuration, or None."""
        return at(self.config, path)


@dataclass(frozen=True)
class Figure:
    """A value in the paper's unit, and its standard error where one is known."""

    value: float
    error: float | None


def read_run(uri: str, step: str = "latest") -> Evaluated:
    """The run at `uri` as evaluated at `step`, a number or `latest`.

    Raises:
        UserError: no run, no evaluation, or none at this step.
    """
    run = open_folder(uri)
    config, found = _config(run), _results(run)
    if not found:
        remedy = f"run python jobs/evaluate.py --run {run.uri} --data URI"
        raise UserError("--runs", f"{run.uri}, which has no evaluation", "evaluated runs", remedy)
    if step != "latest" and not (step.isdigit() and int(step) in found):
        known = ", ".join([*map(str, sorted(found)), "latest"])
        raise UserError("--step", f"{step} of {run.uri}", known, "choose an evaluated step")
    chosen = max(found) if step == "latest" else int(step)
    results = {task: run.read_json(name) for task, name in found[chosen].items()}
    data = _latest_data(results)
    return Evaluated(run.uri, chosen, config, results, data, _epochs(run, chosen, config, data))


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


def data_of(result: dict[str, Any]) -> Data | None:
    """The prepared data that a result is of; none where it does not say."""
    facts = result.get("data")
    return Data(facts["uri"], facts["kind"], facts["rows"], facts.get("reencoded")) if facts else None


def at(tree: Any, path: str) -> Any:
    """What lies at a path of names with dots between, or None."""
    for name in path.split("."):
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


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


def _config(run: Folder) -> dict[str, Any]:
    try:
        config = yaml.safe_load(run.read("config.yaml"))
    except (FileNotFoundError, yaml.YAMLError):
        config = None
    if not isinstance(config, dict):
        raise UserError("--runs", f"{run.uri}, which has no config.yaml", "folders of runs", "check the URI")
    return config


def _results(run: Folder) -> dict[int, dict[str, str]]:
    """Names of the JSON files of `eval/STEP/`, by step and task."""
    found: dict[int, dict[str, str]] = {}
    for entry in run.list("eval/"):
        _, step, *rest = entry.name.split("/")
        if len(rest) == 1 and rest[0].endswith(".json") and step.isdigit():
            found.setdefault(int(step), {})[rest[0].removesuffix(".json")] = entry.name
    return found


def _latest_data(results: dict[str, dict[str, Any]]) -> Data | None:
    """The data of the latest result that says it."""
    known = [result for result in results.values() if data_of(result)]
    return data_of(max(known, key=lambda result: at(result, "provenance.time") or "")) if known else None


def _epochs(run: Folder, step: int, config: dict[str, Any], data: Data | None) -> float | None:
    lines = [line for line in read_lines(run, METRICS) if 0 < line["step"] <= step and line.get("epoch")]
    if lines:
        last = max(lines, key=lambda line: line["step"])
        return last["epoch"] * step / last["step"]
    rows = data.rows.get(at(config, "data.train_split")) if data else None
    return step * at(config, "train.global_batch") / rows if rows else None
