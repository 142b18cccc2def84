"""Tables of the paper with rows for our runs, and footnotes for the differences found by `soda_dist.report.caveats`."""

from collections import Counter
from collections.abc import Callable, Sequence

from soda_dist.config.load import leaves
from soda_dist.data.storage.folder import open_folder
from soda_dist.errors import UserError
from soda_dist.report.caveats import budget, cell_caveats, format_override, part_caveats, run_caveats, uses_data_set
from soda_dist.report.comparison_formats import Cell, Line, Page, Part, as_latex, as_markdown
from soda_dist.report.comparison_html import as_html
from soda_dist.report.paper import Block, Column, Paper, PaperRow, Table, read_paper
from soda_dist.report.paper_columns import OURS, Figure, command, figure
from soda_dist.report.yardsticks import COLUMNS, Yardstick, read_yardsticks
from soda_dist.runs.results import Evaluated, read_run

OTHER, PUBLIC = "Runs on other data sets", "published figures of others, not the paper's"
NOT_MEASURED, NONE = "not measured", "–"
STARRED = "marked in the paper."
MOST_DIFFERENCES = 3
"""Maximum number of differing fields beside a run's name; the rest are counted."""
MAIN = ("method", "data.views", "encoder.arch", "denoiser.conditioning")
"""Fields listed beside a single run's name."""
NOT_LEARNING = ("scale.", "evaluation.", "train.log_every", "train.checkpoint", "train.keep", "train.micro_batch")
"""Prefixes of fields that do not affect training."""
ARROWS = {"higher": "↑", "lower": "↓"}
FORMATS: dict[str, tuple[str, Callable[[Page], str]]] = {
    "markdown": ("md", as_markdown),
    "latex": ("tex", as_latex),
    "html": ("html", as_html),
}


def compare(uris: Sequence[str], number: str, form: str = "markdown", step: str = "latest") -> str:
    """Format a table of the paper with a row for each run.

    Args:
        number: the paper's table number, or the section of an unnumbered table.
        form: `markdown`, `latex` (needs the package booktabs) or `html` (one self-contained page).
        step: an evaluated step of every run, or `latest` of each.

    Raises:
        UserError: an unknown table or form; a URI that is not a run, repeated or not evaluated (at this step).
    """
    if form not in FORMATS:
        raise UserError("--format", form, ", ".join(FORMATS), "choose one of them")
    paper = read_paper()
    table = paper.table(number)
    if not uris or not all(uris):
        raise UserError("--runs", "nothing" if not uris else "an empty URI", "URI,URI,...", "name evaluated runs")
    runs = [read_run(uri, step) for uri in uris]
    for at, run in enumerate(runs):
        if any(run.uri == other.uri for other in runs[:at]):
            raise UserError("--runs", f"{run.uri} twice", "each run once", "leave one of them out")
    return FORMATS[form][1](_page(paper, number, table, runs))


def write_comparison(uris: Sequence[str], number: str, form: str, step: str, out: str) -> str:
    """Write `compare`'s text to `compare-NUMBER.md`, `.tex` or `.html` in the folder `out`; return the file's URI."""
    text = compare(uris, number, form, step)
    folder, name = open_folder(out), f"compare-{number}.{FORMATS[form][0]}"
    folder.write(name, text.encode())
    return folder.file_uri(name)


def _page(paper: Paper, number: str, table: Table, runs: list[Evaluated]) -> Page:
    names = _names(runs)
    page = Page(number, table, list(zip(names, runs, strict=True)))
    labels = list(zip(runs, names, _details(runs), strict=True))
    for block in table.blocks:
        columns = paper.columns[block.columns]
        digits = [_digits(block, at) for at in range(len(columns))]
        lines = [_paper_line(page, row, digits) for row in block.rows]
        for run, name, detail in labels:
            if len(table.blocks) == 1 or uses_data_set(run, paper.data_sets[block.data]):
                lines.append(_our_line(page, run, (name, detail), block, paper, digits))
        title = " · ".join(filter(None, (paper.data_sets[block.data].name, block.title)))
        page.parts.append(Part(title, _heads(columns, paper), tuple(lines)))
    if others := _others(page, paper, labels):
        page.parts.append(others)
    for yardstick in read_yardsticks():
        measured = [label for label in labels if label[0].data and label[0].data.kind in yardstick.kinds]
        if measured:
            page.parts.append(_public(page, yardstick, measured, paper))
    return page


def _others(page: Page, paper: Paper, labels: list[tuple[Evaluated, str, str]]) -> Part | None:
    """Collect the runs on none of the table's data sets; their caveats compare them with the first."""
    blocks = page.table.blocks
    sets = [paper.data_sets[block.data] for block in blocks]
    others = [label for label in labels if not any(uses_data_set(label[0], data_set) for data_set in sets)]
    if len(blocks) == 1 or not others:
        return None
    first = blocks[0]
    columns = paper.columns[first.columns]
    digits = [_digits(first, at) for at in range(len(columns))]
    lines = tuple(_our_line(page, run, (name, detail), first, paper, digits) for run, name, detail in others)
    return Part(f"{OTHER} (compared with {sets[0].name})", _heads(columns, paper), lines)


def _public(page: Page, yardstick: Yardstick, labels: list[tuple[Evaluated, str, str]], paper: Paper) -> Part:
    """Set runs beside the published figures on their data set."""
    lines = [
        Line(row.name, "", tuple(Cell(NONE if v is None else f"{v:.1f}") for v in row.values), False, False,
             (page.note(row.note),), public=True)
        for row in yardstick.rows
    ]  # fmt: skip
    for run, name, detail in labels:
        cells = []
        for column in COLUMNS:
            found = figure(run, column)
            notes = [("to measure it, run:", command(run, column))] if found is None else []
            notes += [(reason, "") for reason in part_caveats(run, column)] if found is not None else []
            text = NOT_MEASURED if found is None else _text(found, 1)
            cells.append(Cell(text, tuple(page.note(*note) for note in notes)))
        lines.append(Line(name, detail, tuple(cells), True, False, (page.note(f"{budget(run)}."),)))
    return Part(f"{yardstick.name}: {PUBLIC}", _heads(COLUMNS, paper), tuple(lines))


def _heads(columns: Sequence[Column], paper: Paper) -> tuple[str, ...]:
    heads = []
    for column in columns:
        metric = paper.metrics[column.metric]
        unit = f", {metric.unit}" if metric.unit else ""
        heads.append(f"{column.name or metric.name}{unit} {ARROWS[metric.better]}")
    return tuple(heads)


def _digits(block: Block, at: int) -> int:
    """Count the decimals of a column in the paper."""
    values = [repr(row.values[at]) for row in block.rows if row.values[at] is not None]
    return max((len(value.partition(".")[2]) for value in values), default=2)


def _paper_line(page: Page, row: PaperRow, digits: list[int]) -> Line:
    cells = []
    for at, value in enumerate(row.values):
        notes = (page.note(STARRED),) if at in row.starred else ()
        cells.append(Cell(NONE if value is None else f"{value:.{digits[at]}f}", notes))
    return Line(row.name, "", tuple(cells), ours=False, bold=row.soda == "default")


def _our_line(
    page: Page, run: Evaluated, label: tuple[str, str], block: Block, paper: Paper, digits: list[int]
) -> Line:
    notes = tuple(page.note(reason) for reason in run_caveats(run, block, paper))
    columns = paper.columns[block.columns]
    cells = tuple(_our_cell(page, run, block, *each, paper) for each in zip(columns, digits, strict=True))
    return Line(label[0], label[1], cells, ours=True, bold=False, notes=notes)


def _our_cell(page: Page, run: Evaluated, block: Block, column: Column, digits: int, paper: Paper) -> Cell:
    if reason := _why_undefined(run, column):
        return Cell(NONE, (page.note(reason),))
    found = figure(run, column)
    if found is None:
        return Cell(NOT_MEASURED, (page.note("to measure it, run:", command(run, column)),))
    notes = tuple(page.note(reason) for reason in cell_caveats(run, block, column, paper))
    return Cell(_text(found, digits), notes)


def _why_undefined(run: Evaluated, column: Column) -> str:
    """Explain why a run cannot have a figure in a column; empty if it can."""
    method = run.field("method")
    if method in OURS[column.ours].without:
        return f"not defined for method={method}."
    if any(run.field(name) != wanted for name, wanted in column.needs.items()):
        return f"only for runs with {' '.join(format_override(*need) for need in column.needs.items())}."
    return ""


def _text(found: Figure, digits: int) -> str:
    text = f"{found.value:.{digits}f}"
    return text if found.error is None else f"{text} ± {found.error:.{digits}f}"


def _names(runs: list[Evaluated]) -> list[str]:
    """Shorten the URIs to their last parts, as many as needed to tell the runs apart."""
    parts = [run.uri.rstrip("/").split("/") for run in runs]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-count:]) for each in parts]
        if len(set(names)) == len(names):
            break
    return names


def _details(runs: list[Evaluated]) -> list[str]:
    """List the main fields in which the runs differ, or the main fields of a single run."""
    flat = [leaves(run.config) for run in runs]
    all_paths = dict.fromkeys(path for fields in flat for path in fields)
    paths = [path for path in all_paths if not path.startswith(NOT_LEARNING)]
    differing = [path for path in paths if any(fields.get(path) != flat[0].get(path) for fields in flat)]
    chosen = sorted(differing, key=lambda path: path not in MAIN) if len(runs) > 1 else list(MAIN)
    more = f", +{len(chosen) - MOST_DIFFERENCES}" if len(chosen) > MOST_DIFFERENCES and len(runs) > 1 else ""
    if len(runs) > 1:
        chosen = chosen[:MOST_DIFFERENCES]
    ends = Counter(path.rpartition(".")[2] for path in paths)
    short = {path: end if ends[end := path.rpartition(".")[2]] == 1 else path for path in chosen}
    return [
        ", ".join(format_override(short[path], fields.get(path)) for path in chosen) + more or "equal configurations"
        for fields in flat
    ]
