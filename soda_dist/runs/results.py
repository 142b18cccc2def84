"""Evaluation results in a run's folder: `eval/STEP/TASK.json` and pictures, written and read only here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from soda_dist.data.storage.folder import Folder
from soda_dist.data.storage.metadata import read_json
from soda_dist.errors import UserError
from soda_dist.runs.folder import (
    EVALUATIONS,
    VALIDATION,
    WITHOUT_EMA,
    evaluation_folder,
    open_run,
    parse_step,
    read_config,
)
from soda_dist.runs.metrics_log import METRICS, read_lines
from soda_dist.runs.result_facts import check_result

Result = dict[str, Any]
ENCODERS = {"trained": "trained", "untrained": "untrained", "pixels": "raw pixels"}
"""Encoders of a result, in the order of a table's columns, and their titles."""
MEASURES = {"top1": "top-1", "top5": "top-5", "macro_f1": "macro F1", "accuracy": "accuracy"}
"""Titles of the classification measures."""
TASKS = {"probe": "linear probe", "knn": "nearest neighbours"}
"""Titles of the classification tasks."""


@dataclass(frozen=True)
class Data:
    """Prepared data of an evaluation, as a result records it: its URI, its kind and the rows of each split."""

    uri: str
    kind: str
    rows: dict[str, int]
    reencoded: dict[str, int | None] | None = None
    """`max_side` and `quality` of images that the import re-encoded; None = as published."""


@dataclass(frozen=True)
class Evaluated:
    """A run at one evaluated step.

    Attributes:
        uri: the run's folder.
        config: the run's configuration as a tree.
        results: the results of the step, by task.
        data: of the latest of these evaluations; None if no result records it.
        epochs: of training up to `step`; None if neither the metrics nor the data's rows tell.
    """

    uri: str
    step: int
    config: dict[str, Any]
    results: dict[str, Result]
    data: Data | None
    epochs: float | None

    def field(self, path: str) -> Any:
        """Return a field of the configuration, or None."""
        return at(self.config, path)


def write_result(run: Folder, step: int, result: Result, pictures: Mapping[str, bytes], *, ema: bool) -> None:
    """Store a task's result, and its pictures by file name, replacing earlier ones of the same step."""
    folder = evaluation_folder(run, step, ema=ema)
    for name, picture in pictures.items():
        folder.write(name, picture)
    folder.write_json(f"{result['task']}.json", result)


def _read(folder: Folder, task: str, name: str) -> Result:
    result: Result = read_json(folder, name)
    check_result(task, result, folder.file_uri(name))
    return result


def read_result(run: Folder, step: int, task: str) -> Result | None:
    """Read the result of a task at a step, or None."""
    folder, name = evaluation_folder(run, step, ema=True), f"{task}.json"
    return _read(folder, task, name) if folder.exists(name) else None


@dataclass(frozen=True, order=True)
class Stored:
    """A file of the evaluation of one step: a result or a picture.

    Attributes:
        title: the file's name without its ending; a result's is its task.
        ema: whether the moving average of the weights was evaluated.
        name: of the file, relative to the run's folder.
    """

    step: int
    title: str
    ema: bool
    name: str


def stored_results(run: Folder) -> list[Stored]:
    """List the results of all steps, ascending."""
    return _stored(run, ".json")


def stored_pictures(run: Folder) -> list[Stored]:
    """List the pictures of all steps, ascending."""
    return _stored(run, ".png")


def validation_pictures(run: Folder) -> list[Stored]:
    """List the pictures that training draws of held-out rows, `validation/STEP.png`, ascending."""
    named = ((entry.name, entry.name.removeprefix(f"{VALIDATION}/")) for entry in run.list(f"{VALIDATION}/"))
    found = ((name, parse_step(title.removesuffix(".png"))) for name, title in named if title.endswith(".png"))
    return sorted(Stored(step, VALIDATION, True, name) for name, step in found if step is not None)


def read_stored(run: Folder, stored: Stored) -> Result:
    """Read a listed result; raise `UserError` if it is not a result of its task, as written."""
    return _read(run, stored.title, stored.name)


def _stored(run: Folder, ending: str) -> list[Stored]:
    """List files directly in `eval/STEP/` and in `eval/STEP/without-ema/`."""
    found = []
    for entry in run.list(f"{EVALUATIONS}/"):
        _, step, *rest = entry.name.split("/")
        number, ema = parse_step(step), len(rest) == 1
        if number is not None and rest[-1].endswith(ending) and (ema or rest[:-1] == [WITHOUT_EMA]):
            found.append(Stored(number, rest[-1].removesuffix(ending), ema, entry.name))
    return sorted(found)


def _results_by_step(run: Folder) -> dict[int, dict[str, str]]:
    """List the results of the moving average of the weights, by step (ascending) and task."""
    found: dict[int, dict[str, str]] = {}
    for stored in stored_results(run):
        if stored.ema:
            found.setdefault(stored.step, {})[stored.title] = stored.name
    return found


def read_run(uri: str, step: str = "latest") -> Evaluated:
    """Read the run at `uri` as evaluated at `step`, a number or `latest`.

    Raises:
        UserError: no run, no evaluation, or none at this step.
    """
    run = open_run(uri)
    read_config(run, "--runs")
    found = _results_by_step(run)
    if not found:
        remedy = f"run evaluate --run {run.uri} --data URI"
        raise UserError("--runs", f"{run.uri}, which has no evaluation", "evaluated runs", remedy)
    chosen = max(found) if step == "latest" else parse_step(step)
    if chosen is None or chosen not in found:
        known = ", ".join([*map(str, found), "latest"])
        raise UserError("--step", f"{step} of {run.uri}", known, "choose an evaluated step")
    return read_step(run, chosen)


def read_step(run: Folder, step: int) -> Evaluated:
    """Read the run at `step`; without results if it was not evaluated there."""
    config, files = read_config(run).model_dump(mode="json"), _results_by_step(run).get(step, {})
    results = {task: _read(run, task, name) for task, name in files.items()}
    data = _latest_data(results)
    return Evaluated(run.uri, step, config, results, data, _epochs(run, step, config, data))


def data_of(result: Result) -> Data | None:
    """Return the prepared data of a result; None if it records none."""
    facts = result.get("data")
    return None if facts is None else Data(**facts)


def at(tree: Any, path: str) -> Any:
    """Return the value at a dotted path of a tree, or None."""
    for name in path.split("."):
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


def _latest_data(results: dict[str, Result]) -> Data | None:
    known = [result for result in results.values() if data_of(result)]
    return data_of(max(known, key=lambda result: at(result, "provenance.time") or "")) if known else None


def _epochs(run: Folder, step: int, config: dict[str, Any], data: Data | None) -> float | None:
    lines = [line for line in read_lines(run, METRICS) if 0 < line["step"] <= step and line.get("epoch")]
    if lines:
        last = max(lines, key=lambda line: line["step"])
        return last["epoch"] * step / last["step"]
    rows = data.rows.get(at(config, "data.train_split")) if data else None
    return step * at(config, "train.global_batch") / rows if rows else None


def headlines(found: Mapping[str, Result]) -> list[str]:
    """Say in a line for each classification task how the encoders of its result compare."""
    lines = []
    for task, title in TASKS.items():
        if task in found:
            measure, encoders = found[task]["metric"], found[task]["encoders"]
            figures = (
                f"{ENCODERS[name]} {100 * scores['estimates'][measure]['value']:.1f} %"
                for name, scores in encoders.items()
            )
            lines.append(f"{title} of {found[task]['label']}, {MEASURES[measure]}: {', '.join(figures)}")
    return lines
