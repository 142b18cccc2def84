"""A comparison as one HTML page: the tables, the runs' curves, differences and pictures together."""

from dataclasses import dataclass

from soda_dist.data.storage.folder import Folder
from soda_dist.errors import UserError
from soda_dist.plots.curves import line_style
from soda_dist.report.comparison_formats import Page, title_of_page
from soda_dist.report.config_differences import FieldValues, between
from soda_dist.report.html import render_template
from soda_dist.report.run_curves import Lines, Plot, training_curves
from soda_dist.report.run_pictures import CAPTIONS, Picture, embed
from soda_dist.runs.folder import open_run
from soda_dist.runs.metrics_log import METRICS, read_lines
from soda_dist.runs.results import Evaluated, Stored, stored_pictures

MOST_SIDE_BY_SIDE = 12
"""Runs whose pictures are shown."""
SVG_DASHES = {"-": "", "--": "6 3", ":": "2 3", "-.": "6 3 2 3"}


@dataclass(frozen=True)
class Mark:
    """A run's line in the curves."""

    name: str
    color: str
    dashes: str


@dataclass(frozen=True)
class SideBySide:
    """One picture of several runs."""

    title: str
    caption: str
    of_runs: list[tuple[str, Picture]]


def as_html(page: Page) -> str:
    """Format as one self-contained HTML page; what cannot be read of a run's curves and pictures is named on it."""
    problems: list[str] = []
    names = [name for name, _ in page.runs]
    return render_template(
        "compare.html",
        page=page,
        title=title_of_page(page),
        legend=[Mark(name, *_style(number)) for number, name in enumerate(names)],
        curves=_curves(page, problems),
        names=names,
        differences=_differences([run for _, run in page.runs]),
        pictures=_pictures(page, problems),
        problems=problems,
    )


def _style(number: int) -> tuple[str, str]:
    color, dashes = line_style(number)
    return color, SVG_DASHES[dashes]


def _curves(page: Page, problems: list[str]) -> list[Plot]:
    logs: list[Lines] = []
    for _, run in page.runs:
        try:
            logs.append(sorted(read_lines(open_run(run.uri), METRICS), key=lambda line: line["step"]))
        except UserError as error:
            problems.append(str(error))
            logs.append([])
    return training_curves(logs)


def _differences(runs: list[Evaluated]) -> list[FieldValues]:
    return between([run.config for run in runs]) if len(runs) > 1 else []


def _pictures(page: Page, problems: list[str]) -> list[SideBySide]:
    """Embed the pictures of the compared steps, those of one name beside each other."""
    shown = page.runs[:MOST_SIDE_BY_SIDE]
    folders = [(name, open_run(run.uri), run.step) for name, run in shown]
    found = [(name, folder, _of_step(folder, step)) for name, folder, step in folders]
    sides = []
    for title, caption in CAPTIONS.items():
        embedded = [
            (name, picture)
            for name, folder, stored in found
            if title in stored and (picture := embed(folder, stored[title], problems))
        ]
        if embedded:
            sides.append(SideBySide(embedded[0][1].title, caption, embedded))
    return sides


def _of_step(folder: Folder, step: int) -> dict[str, Stored]:
    return {stored.title: stored for stored in stored_pictures(folder) if stored.step == step and stored.ema}
