"""Comparison pages as Markdown and LaTeX, with user-provided text escaped."""

import re
from dataclasses import dataclass, field
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from soda_dist.report.markdown_table import pad_table
from soda_dist.report.paper import Table
from soda_dist.runs.results import Evaluated

_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "±": r"$\pm$", "β": r"$\beta$",
    "↑": r"$\uparrow$", "↓": r"$\downarrow$", "–": r"\textendash{}", "·": r"$\cdot$", "\n": " ",
}  # fmt: skip
"""LaTeX's special characters and their escapes."""


@dataclass(frozen=True)
class Note:
    """A footnote: a sentence and, optionally, a command."""

    text: str
    command: str = ""


@dataclass(frozen=True)
class Cell:
    """A formatted figure with the numbers of its footnotes, from 1."""

    text: str
    notes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Line:
    """A row of the paper (SODA's own is bold), of one of our runs, or of another publication."""

    name: str
    detail: str
    cells: tuple[Cell, ...]
    ours: bool
    bold: bool
    notes: tuple[int, ...] = ()
    public: bool = False

    @property
    def origin(self) -> str:
        """Word for where the row comes from."""
        return "run" if self.ours else "public" if self.public else "paper"


@dataclass(frozen=True)
class Part:
    """Rows of one data set, with column headings."""

    title: str
    heads: tuple[str, ...]
    lines: tuple[Line, ...]


@dataclass
class Page:
    """Format-independent content of a comparison."""

    number: str
    table: Table
    runs: list[tuple[str, Evaluated]] = field(default_factory=list)
    """The compared runs, each with its name in the tables."""
    parts: list[Part] = field(default_factory=list)
    footnotes: list[Note] = field(default_factory=list)

    def note(self, text: str, command: str = "") -> int:
        """Add a footnote unless an equal one exists, and return its number."""
        note = Note(text, command)
        if note not in self.footnotes:
            self.footnotes.append(note)
        return self.footnotes.index(note) + 1


def as_markdown(page: Page) -> str:
    """Format as GitHub Markdown with padded columns."""
    lines = [f"# {title_of_page(page)}", ""]
    for part in page.parts:
        lines += [f"## {_markdown(part.title)}", "", *_markdown_table(part), ""]
    lines += [f"- {_markdown(note)}" for note in page.table.notes]
    lines += ["", *(f"[^{number}]: {_markdown_note(note)}" for number, note in enumerate(page.footnotes, 1))]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def as_latex(page: Page) -> str:
    """Format as LaTeX tables for the package booktabs, each with its footnotes."""
    environment = Environment(
        loader=PackageLoader("soda_dist.report", ""),
        block_start_string="<%", block_end_string="%>", variable_start_string="<<", variable_end_string=">>",
        comment_start_string="<#", comment_end_string="#>",
        trim_blocks=True, lstrip_blocks=True, autoescape=False, undefined=StrictUndefined, finalize=_tex,
    )  # fmt: skip
    environment.filters["typed"] = lambda text: Markup(_tex(text).replace("'", r"\textquotesingle{}"))
    return environment.get_template("compare.tex").render(page=page, title=title_of_page(page), notes_of=_notes_of)


def title_of_page(page: Page) -> str:
    """Return the table's number, section and caption."""
    name = f"Table {page.number}" if page.number[0].isdigit() else f"The table of {page.number}"
    return f"{name} (section {page.table.section}): {page.table.caption}"


def _markdown_table(part: Part) -> list[str]:
    return pad_table([["", "from", *part.heads], *(_markdown_row(line) for line in part.lines)], names=2)


def _markdown_row(line: Line) -> list[str]:
    name = _markdown(line.name)
    label = f"**{name}**" if line.bold or line.ours else name
    label += f" ({_markdown(line.detail)})" if line.detail else ""
    cells = [_markdown(cell.text) + _markdown_marks(cell.notes) for cell in line.cells]
    return [label + _markdown_marks(line.notes), line.origin, *cells]


def _markdown_marks(numbers: tuple[int, ...]) -> str:
    return "".join(f"[^{number}]" for number in numbers)


def _markdown_note(note: Note) -> str:
    fence = "``" if "`" in note.command else "`"
    return _markdown(note.text) + (f" {fence}{note.command}{fence}" if note.command else "")


def _markdown(text: str) -> str:
    return re.sub(r"([\\|*`<\[\]])", r"\\\1", " ".join(text.split()))


def _tex(value: Any) -> str:
    """Escape text for LaTeX; `Markup` passes unchanged."""
    if isinstance(value, Markup):
        return value
    return re.sub("-(?=-)", "-{}", "".join(_TEX.get(character, character) for character in str(value)))


def _notes_of(page: Page, part: Part) -> list[tuple[int, Note]]:
    """Collect the footnotes used in a part."""
    numbers = {n for line in part.lines for notes in (line.notes, *(c.notes for c in line.cells)) for n in notes}
    return [(number, page.footnotes[number - 1]) for number in sorted(numbers)]
