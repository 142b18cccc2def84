"""An HTML page as its reader meets it: tags, texts, and the numbers it shows."""

import json
import math
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

VOID = {"meta", "img", "br", "link"}


class HtmlPage(HTMLParser):
    """Tags with their attributes, text by section, and the numbers of the page.

    Attributes:
        values: of the elements `data`, each with its text.
        older: rows of the tables of older steps by the id of their section: a step and the texts of its cells.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.values: list[tuple[float, str]] = []
        self.older: dict[str, list[list[str]]] = {}
        self.sections: dict[str, str] = {}
        self._open: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if tag not in VOID:
            self._open.append((tag, found))
        if tag == "data":
            self.values.append((float(str(found["value"])), ""))
        if tag == "tr" and self._older():
            self.older.setdefault(self._section(), []).append([])
        if tag in ("td", "th") and self._older():
            self.older[self._section()][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        inside = [tag for tag, _ in self._open]
        for tag, found in self._open:
            if tag == "section":
                self.sections[str(found["id"])] = self.sections.get(str(found["id"]), "") + data
        if inside and inside[-1] == "data":
            value, text = self.values[-1]
            self.values[-1] = (value, text + data)
        if inside and inside[-1] in ("td", "th") and self._older():
            self.older[self._section()][-1][-1] += data

    def _older(self) -> bool:
        return any(tag == "details" and found.get("class") == "older" for tag, found in self._open)

    def _section(self) -> str:
        return [str(found["id"]) for tag, found in self._open if tag == "section"][-1]


def json_numbers(tree: Any) -> Iterator[float]:
    """Every number of a JSON tree, but for its provenance and its step."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            if name not in ("provenance", "step"):
                yield from json_numbers(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from json_numbers(value)
    elif isinstance(tree, int | float) and not isinstance(tree, bool):
        yield tree


def missing_numbers(run: Path, page: HtmlPage) -> list[str]:
    """Name each number of the run's `eval/STEP/*.json` that the page lacks.

    Those of a task's newest step must be on the page as they are; those of an older one in the row of its step, or
    among what is the same at all older steps, to six significant digits.
    """
    files = sorted(run.glob("eval/*/*.json"), key=lambda path: int(path.parent.name))
    newest = {path.name: path for path in files}
    shown = {value for value, _ in page.values}
    lacking = []
    for path in files:
        numbers = set(json_numbers(json.loads(path.read_text())))
        if newest[path.name] == path:
            absent = numbers - shown
        else:
            section = f"result-{path.stem.replace('_', '-')}"
            (row,) = [row for row in page.older[section] if row[0] == path.parent.name]
            here = [*_floats(" ".join(row)), *_floats(page.sections[section])]
            absent = {each for each in numbers if not any(math.isclose(each, one, rel_tol=1e-5) for one in here)}
        lacking += [f"{path.parent.name}/{path.name}: {number}" for number in sorted(absent)]
    return lacking


def _floats(text: str) -> Iterator[float]:
    for word in text.replace(";", " ").replace("±", " ").split():
        try:
            yield float(word.rstrip(".").replace(",", ""))
        except ValueError:
            continue
