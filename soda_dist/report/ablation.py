"""Ablation tables: our figures over seeds beside the paper's, and a verdict on each of its claims."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from soda_dist.config.ablation import Ablation, Claim, Measure, PaperColumn, Variant
from soda_dist.errors import UserError
from soda_dist.plots.curves import ACCENT, FAINT, STYLE
from soda_dist.report.markdown_table import pad_table
from soda_dist.report.paper import Block, Paper
from soda_dist.report.paper_columns import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Figures = Mapping[str, Sequence[Sequence[Figure | None]]]
"""Variant name -> one sequence per seed, with a figure for each measure."""
CONFIDENCE = 0.95
"""Confidence level of the interval that decides a claim."""
NO_VALUE = "–"
PANEL, LINE = 3.0, 0.3
"""Inches: a panel's width, a variant's height."""


@dataclass(frozen=True)
class Cell:
    """One measure of a variant."""

    value: float | None
    """Mean over seeds; None if no seed has a figure."""
    error: float | None
    """Standard error over seeds, or of the figure itself for one seed."""
    seeds: tuple[float | None, ...]
    """Value per seed; None if the run diverged or has no such figure."""


@dataclass(frozen=True)
class Head:
    """Heading of a measure, with the names of the paper's columns beside it."""

    name: str
    unit: str
    better: str
    paper: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """Results of a variant; `paper` holds, per measure, a value for each of the paper's columns."""

    name: str
    fields: dict[str, object]
    cells: tuple[Cell, ...]
    paper: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True)
class Outcome:
    """Verdict on the claim that `variant` beats `other`."""

    variant: str
    other: str
    measure: str
    ahead: float | None
    """Mean difference, paired by seed; positive if `variant` is better."""
    half: float | None
    """Half-width of the confidence interval of `ahead`: Student's t over seeds, normal for one seed."""
    verdict: str
    """`seen` if the interval is above 0, `against` if below, else `within noise`, or `not measured`; a claim of "not
    worse" is `seen` unless `against`."""


@dataclass(frozen=True)
class Summary:
    """Contents of an ablation page."""

    title: str
    budget: str
    seeds: tuple[int, ...]
    heads: tuple[Head, ...]
    rows: tuple[Row, ...]
    outcomes: tuple[Outcome, ...]


def check_group(group: Ablation, paper: Paper) -> None:
    """Raise `UserError` for an unknown measure, or a table, column or row that the paper does not have."""
    measures = {column.ours for columns in paper.columns.values() for column in columns}
    for measure in group.measures:
        if measure.ours not in measures:
            raise UserError("measures.ours", measure.ours, ", ".join(sorted(measures)), "choose one of them")
        for column in measure.paper:
            _blocks_with(column, paper)
    for variant in group.variants:
        for number, name in variant.paper.items():
            names = [row.name for block in paper.table(number).blocks for row in block.rows]
            if name not in names:
                raise UserError(f"{variant.name}: paper", f"{name} of table {number}", ", ".join(names), "choose a row")


def summarize(group: Ablation, figures: Figures, paper: Paper, budget: str) -> Summary:
    """Compare the variants of a group with each other and with the paper; raise `UserError` as `check_group` does.

    `figures` are for every variant and the group's seeds; `budget` is a sentence on our training budget.
    """
    check_group(group, paper)
    heads = tuple(_head(measure, paper) for measure in group.measures)
    rows = tuple(_row(group, variant, figures[variant.name], paper) for variant in group.variants)
    outcomes = [_outcome(claim, other, heads, figures) for claim in group.claims for other in claim.above]
    return Summary(group.title, budget, group.seeds, heads, rows, tuple(outcomes))


def as_markdown(summary: Summary) -> str:
    """Format the table as padded GitHub Markdown, with the claims below it."""
    several = len(summary.seeds) > 1
    meaning = f"mean and standard error over {len(summary.seeds)} seeds" if several else "and its standard error"
    heads = [""]
    for head in summary.heads:
        heads += [_label(head), *head.paper]
    lines = [f"## {summary.title}", "", f"{summary.budget} Ours: {meaning}; the paper's columns name its tables.", ""]
    lines += pad_table([heads, *(_format_row(row, summary.heads) for row in summary.rows)], names=1)
    lines += ["", *(f"- {_format_outcome(outcome, several)}" for outcome in summary.outcomes)]
    return "\n".join(lines).strip() + "\n"


def ablation_plot(summary: Summary) -> bytes:
    """Draw a PNG: one panel per measure, one line per variant; seeds faint, mean and standard error bold."""
    import matplotlib as mpl
    from matplotlib.figure import Figure as Canvas

    names = [row.name for row in summary.rows][::-1]
    with mpl.rc_context({**STYLE, "axes.grid.axis": "x"}):
        size = (2.2 + PANEL * len(summary.heads), 0.9 + LINE * len(names))
        canvas = Canvas(figsize=size, layout="constrained")
        panels = canvas.subplots(1, len(summary.heads), sharey=True, squeeze=False)[0]
        for at, (axes, head) in enumerate(zip(panels, summary.heads, strict=True)):
            _panel(axes, [row.cells[at] for row in summary.rows][::-1])
            axes.set_xlabel(_label(head))
        panels[0].set_yticks(range(len(names)), names)
        panels[0].set_ylim(-0.6, len(names) - 0.4)
        buffer = BytesIO()
        canvas.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _panel(axes: "Axes", cells: Sequence[Cell]) -> None:
    for at, cell in enumerate(cells):
        known = [value for value in cell.seeds if value is not None]
        axes.scatter(known, [at] * len(known), color=FAINT, s=22, zorder=2)
        if cell.value is not None:
            axes.errorbar(cell.value, at, xerr=cell.error, fmt="o", color=ACCENT, markersize=6, linewidth=2, zorder=3)


def _head(measure: Measure, paper: Paper) -> Head:
    metric = next(c.metric for columns in paper.columns.values() for c in columns if c.ours == measure.ours)
    known = paper.metrics[metric]
    name = known.name + (f" from {measure.sources} source{'s' * (measure.sources > 1)}" if measure.sources else "")
    return Head(name, known.unit, known.better, tuple(_paper_name(column, paper) for column in measure.paper))


def _paper_name(column: PaperColumn, paper: Paper) -> str:
    metric = paper.metrics[_find_column(_blocks_with(column, paper)[0], column, paper)[1]].name
    return f"paper, {column.table}: {metric}, {paper.data_sets[column.data].name}"


def _blocks_with(column: PaperColumn, paper: Paper) -> list[Block]:
    blocks = [block for block in paper.table(column.table).blocks if block.data == column.data]
    if not blocks:
        known = sorted({block.data for block in paper.table(column.table).blocks})
        raise UserError("measures.paper.data", f"{column.data} of table {column.table}", ", ".join(known), "choose one")
    for block in blocks:
        _find_column(block, column, paper)
    return blocks


def _find_column(block: Block, column: PaperColumn, paper: Paper) -> tuple[int, str]:
    """Find index and metric of the column in a block."""
    columns = paper.columns[block.columns]
    for at, each in enumerate(columns):
        if each.ours == column.ours and column.sources in (None, each.sources):
            return at, each.metric
    known = ", ".join(dict.fromkeys(each.ours for each in columns))
    got = column.ours + (f" from {column.sources} sources" if column.sources else "")
    raise UserError("measures.paper", f"{got} of table {column.table}", known, "choose a column of the table")


def _row(group: Ablation, variant: Variant, figures: Sequence[Sequence[Figure | None]], paper: Paper) -> Row:
    cells = tuple(_cell([seed[at] for seed in figures]) for at in range(len(group.measures)))
    published = tuple(tuple(_paper_value(variant, each, paper) for each in measure.paper) for measure in group.measures)
    return Row(variant.name, variant.fields, cells, published)


def _paper_value(variant: Variant, column: PaperColumn, paper: Paper) -> float | None:
    for block in _blocks_with(column, paper):
        for row in block.rows:
            if row.name == variant.paper.get(column.table):
                return row.values[_find_column(block, column, paper)[0]]
    return None


def _cell(figures: Sequence[Figure | None]) -> Cell:
    seeds = tuple(None if each is None else each.value for each in figures)
    known = [value for value in seeds if value is not None]
    if not known:
        return Cell(None, None, seeds)
    error = float(np.std(known, ddof=1)) / math.sqrt(len(known)) if len(known) > 1 else None
    if len(figures) == 1 and figures[0] is not None:
        error = figures[0].error
    return Cell(float(np.mean(known)), error, seeds)


def _outcome(claim: Claim, other: str, heads: Sequence[Head], figures: Figures) -> Outcome:
    """Test a claim, paired by seed, since both variants see the same image pairs in the same order."""
    theirs_at = claim.measure if claim.their_measure is None else claim.their_measure
    head, sign = heads[claim.measure], 1.0 if heads[claim.measure].better == "higher" else -1.0
    named = other if theirs_at == claim.measure else f"{other} ({heads[theirs_at].name})"
    seeds = zip(figures[claim.variant], figures[other], strict=True)
    pairs = [(ours[claim.measure], theirs[theirs_at]) for ours, theirs in seeds]
    known = [(ours, theirs) for ours, theirs in pairs if ours is not None and theirs is not None]
    if not known:
        return Outcome(claim.variant, named, head.name, None, None, "not measured")
    ahead = [sign * (ours.value - theirs.value) for ours, theirs in known]
    mean, half = float(np.mean(ahead)), _half_width(ahead, known[0])
    verdict = "within noise" if half is None or abs(mean) <= half else "seen" if mean > 0 else "against"
    if claim.equal and half is not None and verdict != "against":
        verdict = "seen"
    return Outcome(claim.variant, named, head.name, mean, half, verdict)


def _half_width(ahead: Sequence[float], pair: tuple[Figure, Figure]) -> float | None:
    from scipy.stats import t as student

    if len(ahead) > 1:
        error = float(np.std(ahead, ddof=1)) / math.sqrt(len(ahead))
        return error * float(student.ppf((1 + CONFIDENCE) / 2, len(ahead) - 1))
    errors = [figure.error for figure in pair]
    if None in errors:
        return None
    return math.hypot(*(error or 0.0 for error in errors)) * float(student.ppf((1 + CONFIDENCE) / 2, math.inf))


def _label(head: Head) -> str:
    return head.name + (f", {head.unit}" if head.unit else "")


def _decimals(head: Head) -> int:
    return {"%": 1, "dB": 2}.get(head.unit, 3)


def _format_row(row: Row, heads: Sequence[Head]) -> list[str]:
    texts = [row.name]
    for head, cell, published in zip(heads, row.cells, row.paper, strict=True):
        texts.append(_format_cell(cell, _decimals(head)))
        texts += [NO_VALUE if value is None else f"{value:g}" for value in published]
    return texts


def _format_cell(cell: Cell, digits: int) -> str:
    missing = sum(value is None for value in cell.seeds)
    if cell.value is None:
        return NO_VALUE
    text = f"{cell.value:.{digits}f}" + (f" ± {cell.error:.{digits}f}" if cell.error is not None else "")
    return text + (f" ({missing} of {len(cell.seeds)} without)" if missing else "")


def _format_outcome(outcome: Outcome, several: bool) -> str:
    about = f"{outcome.variant} against {outcome.other}, {outcome.measure}"
    if outcome.ahead is None:
        return f"{about}: {outcome.verdict}"
    spread = f" ± {outcome.half:.2f}" if outcome.half is not None else ""
    kind = "paired over seeds" if several else "of one seed"
    return f"{about}: {outcome.ahead:+.2f}{spread} ({CONFIDENCE:.0%} interval {kind}): **{outcome.verdict}**"
