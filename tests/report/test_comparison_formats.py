"""The comparison as Markdown, LaTeX and HTML: whole, self-contained, and unbroken by what a run is called."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from soda_dist.report.comparison import compare, write_comparison
from soda_dist.report.comparison_formats import _tex
from tests.report.evaluated_runs import gso, imagenet
from tests.report.html_page import VOID

EVIL = "a<b>&\"c'|d_e%f#g{h}~i^j$k*l`m--n"


class _Page(HTMLParser):
    """Open tags, and text by the kind of row."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: dict[str, list[str]] = {}
        self.links: set[str] = set()
        self.ids: set[str] = set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.setdefault(found.get("class") or "head", []).append("")
        self.ids |= {str(found["id"])} if "id" in found else set()
        self.links |= {str(found[name]) for name in ("href", "src") if name in found}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "tr" in self.open:
            last = list(self.rows)[-1]
            self.rows[last][-1] += data


def test_html_is_whole_self_contained_and_escaped(tmp_path: Path) -> None:
    text = compare([imagenet(tmp_path, name=EVIL)], "9", "html")
    page = _Page(text)
    assert page.open == []
    assert EVIL in page.rows["run"][0] and "71.57 ± 0.10" in page.rows["run"][0]
    assert "72.24" in page.rows["default"][0] and len(page.rows["paper"]) == 4
    assert all(link.removeprefix("#") in page.ids or link.startswith("data:") for link in page.links) and page.links
    assert "<b>" not in text and "http" not in text


def test_latex_is_escaped_and_its_rows_are_whole(tmp_path: Path) -> None:
    text = compare([imagenet(tmp_path, name=EVIL)], "9", "latex")
    row = next(line for line in text.splitlines() if line.startswith("a\\textless{}b"))
    shown = (
        r"a\textless{}b\textgreater{}\&\textquotedbl{}c'\textbar{}d\_e\%f\#g\{h\}\textasciitilde{}i"
        r"\textasciicircum{}j\$k*l`m-{}-n"
    )
    assert row.startswith(shown) and row.endswith(r"\\") and r"71.57 $\pm$ 0.10" in row
    for line in text.split(r"\midrule")[1].splitlines():
        assert line.count("&") - line.count(r"\&") == (6 if line.endswith(r"\\") else 0), line
    bare = re.sub(r"\\[{}]", "", text)
    assert bare.count("{") == bare.count("}")
    assert re.search(r"\$\^\{1\}\$ .+\\par", text) and r"\begin{tabular}{llrrrrr}" in text
    assert "'" not in re.search(r"\\texttt\{(.*)\}\\par", text)[1], "a quote would be a typographic one"


def test_latex_leaves_nothing_that_it_would_take_for_a_command() -> None:
    for character in map(chr, range(32, 127)):
        text = _tex(character)
        if character in '\\&%$#_{}~^<>|"':
            assert text.startswith("\\") and text != character
        else:
            assert text == character
    assert _tex("a\\b") == r"a\textbackslash{}b"


def test_markdown_keeps_its_columns_whatever_a_run_is_called(tmp_path: Path) -> None:
    text = compare([imagenet(tmp_path, name=EVIL)], "9")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in rows} == {8}
    assert {len(line) for line in rows} == {len(rows[0])}, "columns are padded"
    name = re.search(r"\*\*(a.*n)\*\* \(", text)[1]
    assert re.sub(r"\\(.)", r"\1", name) == EVIL and r"\<b>" in name and r"\*l\`m" in name


@pytest.mark.parametrize("number", ["1", "2", "3", "4", "5", "6", "7", "8", "9", "11", "G.3"])
@pytest.mark.parametrize("form", ["markdown", "latex", "html"])
def test_every_table_can_be_shown(number: str, form: str, tmp_path: Path) -> None:
    text = compare([imagenet(tmp_path), gso(tmp_path / "objects")], number, form)
    assert "None" not in text and text.count("objects/run" if form == "markdown" else "/run") >= 1
    assert "different data set: " in text, "each table is of one of the two at most"


def test_files_are_called_after_the_table(tmp_path: Path) -> None:
    uri = imagenet(tmp_path)
    for form, ending in (("markdown", "md"), ("latex", "tex"), ("html", "html")):
        written = write_comparison([uri], "1", form, "latest", str(tmp_path / "out"))
        assert written == str(tmp_path / f"out/compare-1.{ending}")
        assert Path(written).read_text() == compare([uri], "1", form)
