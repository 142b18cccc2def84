"""Self-contained HTML report of a run, a function of its folder alone."""

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from soda_dist.config.load import MAX_BYTES
from soda_dist.config.older import parse_stored
from soda_dist.data.storage.folder import Folder
from soda_dist.errors import UserError
from soda_dist.report.config_differences import Differences, from_preset, preset_of
from soda_dist.report.history import History, history
from soda_dist.report.html import render_template
from soda_dist.report.measures import TITLES, Cell, plain_text, task_title
from soda_dist.report.result_tables import ResultTables, result_tables
from soda_dist.report.result_words import Headline, about, headline
from soda_dist.report.run_curves import result_curves, training_curves
from soda_dist.report.run_pictures import embed, pictures_by_topic, recent
from soda_dist.report.run_state import run_state
from soda_dist.runs.folder import CONFIG, REPORT, attempts, complete_steps, config_text, open_run
from soda_dist.runs.metrics_log import METRICS, QUARANTINE, read_lines
from soda_dist.runs.results import (
    Result,
    at,
    read_stored,
    stored_pictures,
    stored_results,
    validation_pictures,
)

Results = dict[tuple[str, bool], dict[int, Result]]
"""(task, whether of the moving average) -> step -> result; tasks in the order of the page."""
Lines = list[dict[str, Any]]
Found = TypeVar("Found")
SHOWN_QUARANTINED, SHOWN_PROBLEMS, SHOWN_STARTS = 20, 20, 200
"""Names, lines and starts that are listed; the rest are counted."""


@dataclass(frozen=True)
class TaskResults:
    """The newest result of a task, and the older ones."""

    id: str
    title: str
    step: int
    about: str
    tables: ResultTables
    older: History | None


def write_report(run_uri: str) -> str:
    """Write `report.html` into the run's folder, replacing an earlier one; return its URI.

    Raises:
        UserError: as `open_run`, or the file cannot be written. What cannot be read is named on the page instead.
    """
    run = open_run(run_uri)
    run.write(REPORT, render(run).encode())
    return run.file_uri(REPORT)


def render(run: Folder) -> str:
    """Render the report; a file of the run that cannot be read costs its part of the page and is named on it."""
    problems: list[str] = []
    text = _readable(problems, "", lambda: config_text(run))
    config = _readable(problems, None, lambda: parse_stored(text, run.file_uri(CONFIG)) if text else None)
    starts: Lines = _readable(problems, [], lambda: attempts(run))
    lines: Lines = _readable(problems, [], lambda: sorted(read_lines(run, METRICS), key=lambda line: line["step"]))
    quarantined: Lines = _readable(problems, [], lambda: read_lines(run, QUARANTINE))
    results = _results(run, problems)
    validation = [embed(run, stored, problems) for stored in recent(validation_pictures(run))]
    pictures = pictures_by_topic(run, stored_pictures(run), problems)
    return render_template(
        "report.html",
        result_id=result_id,
        uri=run.uri,
        command_uri=shlex.quote(run.uri),
        name=plain_text(run.uri.rstrip("/").rsplit("/", 1)[-1]),
        state=run_state(config, starts, lines, complete_steps(run), _kind(results)),
        headlines=_headlines(results),
        problems=problems[:SHOWN_PROBLEMS],
        more_problems=len(problems) - SHOWN_PROBLEMS,
        curves=training_curves([lines]),
        trends=result_curves(results),
        tasks=[_task(task, ema, by_step) for (task, ema), by_step in results.items()],
        unmeasured=[task for task in TITLES if (task, True) not in results],
        validation=[picture for picture in validation if picture],
        pictures=pictures,
        differences=_differences(config, starts, problems),
        configuration=text[:MAX_BYTES],
        starts=[_start(start) for start in starts[::-1][:SHOWN_STARTS]],
        more_starts=len(starts) - SHOWN_STARTS,
        quarantined=_quarantined(quarantined),
    )


def _readable(problems: list[str], otherwise: Found, read: Callable[[], Found]) -> Found:
    try:
        return read()
    except UserError as error:
        problems.append(str(error))
        return otherwise


def _results(run: Folder, problems: list[str]) -> Results:
    found: Results = {}
    for stored in stored_results(run):
        try:
            found.setdefault((stored.title, stored.ema), {})[stored.step] = read_stored(run, stored)
        except FileNotFoundError:  # removed since it was listed
            continue
        except UserError as error:
            problems.append(str(error))
    order = list(TITLES)
    kept = {key: by_step for key, by_step in found.items() if by_step}
    return dict(sorted(kept.items(), key=lambda item: (_place(item[0][0], order), item[0][0], not item[0][1])))


def _place(name: str, order: list[str]) -> int:
    return order.index(name) if name in order else len(order)


def _kind(results: Results) -> str:
    """Name the data of the newest result that records it."""
    kinds = [
        (step, kind) for by_step in results.values() for step, r in by_step.items() if (kind := at(r, "data.kind"))
    ]
    return str(max(kinds)[1]) if kinds else ""


def _headlines(results: Results) -> list[Headline]:
    newest = (((task, ema), max(by_step)) for (task, ema), by_step in results.items())
    found = (headline(task, ema, step, results[task, ema][step]) for (task, ema), step in newest)
    return [each for each in found if each]


def _task(task: str, ema: bool, by_step: dict[int, Result]) -> TaskResults:
    newest = max(by_step)
    tables = result_tables(by_step[newest])
    origin = by_step[newest].get("provenance") or {}
    tables.circumstances.extend(
        (f"evaluated: {name}", [Cell(plain_text(origin[name]))])
        for name in ("time", "command", "commit")
        if name in origin
    )
    older = history({step: result for step, result in by_step.items() if step != newest})
    return TaskResults(result_id(task, ema), task_title(task, ema=ema), newest, about(by_step[newest]), tables, older)


def result_id(task: str, ema: bool) -> str:
    """Return the anchor of a task's results."""
    return "result-" + re.sub(r"[^a-z0-9]+", "-", task.lower()[:60]) + ("" if ema else "-without-ema")


def _differences(config: Any, starts: list[dict[str, Any]], problems: list[str]) -> Differences | None:
    if config is None:
        return None
    return _readable(problems, None, lambda: from_preset(config, preset_of(starts)))


def _start(start: dict[str, Any]) -> list[tuple[str, str]]:
    return [(plain_text(name), plain_text(value)) for name, value in start.items()]


def _quarantined(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Count the images that could not be read in training and list the first."""
    names = list(dict.fromkeys(str(line.get("name") or line.get("key")) for line in lines))
    return {"images": len(names), "meetings": len(lines), "first": list(map(plain_text, names[:SHOWN_QUARANTINED]))}
