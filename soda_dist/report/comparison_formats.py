"""A comparison as Markdown, LaTeX or HTML. What a run's name or configuration holds is escaped in each."""

import re
from dataclasses import dataclass, field
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from soda_dist.report.paper import Table

NAMES = 2
"""Columns before the figures."""
_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "±": r"$\pm$", "β": r"$\beta$",
    "↑": r"$\uparrow$", "↓": r"$\downarrow$", "–": r"\textendash{}", "·": r"$\cdot$", "\n": " ",
}  # fmt: skip
"""What LaTeX would take for more than a character."""


@dataclass(frozen=True)
class Note:
    """A footnote: a sentence, or a sentence and the command that it names."""

    text: str
    command: str = ""


@dataclass(frozen=True)
class Cell:
    """A figure as text, with the numbers of its footnotes, from 1."""

    text: str
    notes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Line:
    """A row: the paper's (its own model's in bold), or one of our runs."""

    name: str
    detail: str
    cells: tuple[Cell, ...]
    ours: bool
    bold: bool
    notes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Part:
    """The rows of one data set under their heads."""

    title: str
    heads: tuple[str, ...]
    lines: tuple[Line, ...]


@dataclass
class Page:
    """Everything that is shown, before it is Markdown, LaTeX or HTML."""

    number: str
    table: Table
    parts: list[Part] = field(default_factory=list)
    footnotes: list[Note] = field(default_factory=list)

    def note(self, text: str, of_command: str = "") -> int:
        """The number of a footnote; equal ones are one."""
        note = Note(text, of_command)
        if note not in self.footnotes:
            self.footnotes.append(note)
        return self.footnotes.index(note) + 1


def as_markdown(page: Page) -> str:
    """GitHub's Markdown; columns are padded, so that it can be read as it is."""
    lines = [f"# {_title(page)}", ""]
    for part in page.parts:
        lines += [f"## {_markdown(part.title)}", "", *_markdown_table(part), ""]
    lines += [f"- {_markdown(note)}" for note in page.table.notes]
    lines += ["", *(f"[^{number}]: {_markdown_note(note)}" for number, note in enumerate(page.footnotes, 1))]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def as_latex(page: Page) -> str:
    """Tables for the package booktabs, each with its footnotes."""
    page_of = Environment(
        loader=PackageLoader("soda_dist.report", ""),
        block_start_string="<%", block_end_string="%>", variable_start_string="<<", variable_end_string=">>",
        comment_start_string="<#", comment_end_string="#>",
        trim_blocks=True, lstrip_blocks=True, autoescape=False, undefined=StrictUndefined, finalize=_tex,
    )  # fmt: skip
    page_of.filters["typed"] = lambda text: Markup(_tex(text).replace("'", r"\textquotesingle{}"))
    return page_of.get_template("compare.tex").render(page=page, title=_title(page), notes_of=_notes_of)


def as_html(page: Page) -> str:
    """One page that refers to nothing outside itself."""
    page_of = Environment(
        loader=PackageLoader("soda_dist.report", ""),
        trim_blocks=True, lstrip_blocks=True, autoescape=True, undefined=StrictUndefined,
    )  # fmt: skip
    return page_of.get_template("compare.html").render(page=page, title=_title(page)) + "\n"


def _title(page: Page) -> str:
    name = f"Table {page.number}" if page.number[0].isdigit() else f"The table of {page.number}"
    return f"{name} (section {page.table.section}): {page.table.caption}"


def _markdown_table(part: Part) -> list[str]:
    rows = [["", "from", *part.heads], *(_markdown_row(line) for line in part.lines)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    texts = (
        [_aligned(at, cell, width) for at, (cell, width) in enumerate(zip(row, widths, strict=True))] for row in rows
    )
    head, *body = (f"| {' | '.join(cells)} |" for cells in texts)
    rule = "|".join("-" * (w + 2) if at < NAMES else "-" * (w + 1) + ":" for at, w in enumerate(widths))
    return [head, f"|{rule}|", *body]


def _aligned(at: int, cell: str, width: int) -> str:
    """Names to the left, figures to the right."""
    return cell.ljust(width) if at < NAMES else cell.rjust(width)


def _markdown_row(line: Line) -> list[str]:
    name = _markdown(line.name)
    label = f"**{name}**" if line.bold or line.ours else name
    label += f" ({_markdown(line.detail)})" if line.detail else ""
    cells = [_markdown(cell.text) + _markdown_marks(cell.notes) for cell in line.cells]
    return [label + _markdown_marks(line.notes), "run" if line.ours else "paper", *cells]


def _markdown_marks(numbers: tuple[int, ...]) -> str:
    return "".join(f"[^{number}]" for number in numbers)


def _markdown_note(note: Note) -> str:
    fence = "``" if "`" in note.command else "`"
    return _markdown(note.text) + (f" {fence}{note.command}{fence}" if note.command else "")


def _markdown(text: str) -> str:
    return re.sub(r"([\\|*`<\[\]])", r"\\\1", " ".join(text.split()))


def _tex(value: Any) -> str:
    """Text that LaTeX shows as it is; `Markup` is LaTeX already."""
    if isinstance(value, Markup):
        return value
    return re.sub("-(?=-)", "-{}", "".join(_TEX.get(character, character) for character in str(value)))


def _notes_of(page: Page, part: Part) -> list[tuple[int, Note]]:
    """The footnotes that a part refers to."""
    numbers = {n for line in part.lines for notes in (line.notes, *(c.notes for c in line.cells)) for n in notes}
    return [(number, page.footnotes[number - 1]) for number in sorted(numbers)]
