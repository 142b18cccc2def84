"""Figures of the runs in this folder, gathered over a session and written as a page."""

import platform
import subprocess
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch

MARK = "<!-- below: written by `make test-learn` -->"
ROOT = Path(__file__).parents[2]


@dataclass
class Results:
    """Rows of (what, figure, seconds) by section, in the order in which they were added."""

    path: Path | None
    """The page; none: nothing is written."""
    sections: dict[str, list[tuple[str, str, float]]] = field(default_factory=dict)
    pictures: list[str] = field(default_factory=list)

    def add(self, section: str, what: str, figure: str, seconds: float) -> None:
        print(f"{what}: {figure} ({seconds:.0f} s)")
        self.sections.setdefault(section, []).append((what, figure, seconds))

    def picture(self, name: str, title: str, content: bytes) -> None:
        """A PNG beside the page."""
        if self.path is not None:
            (self.path.parent / name).write_bytes(content)
            self.pictures.append(f"![{title}]({name})\n\n{title}\n")

    def write(self) -> None:
        """What stands above MARK stays."""
        if self.path is None or not self.sections:
            return
        above = self.path.read_text().partition(MARK)[0] if self.path.exists() else ""
        self.path.write_text(f"{above}{MARK}\n\n{self._page()}")

    def _page(self) -> str:
        lines = [f"{datetime.now(UTC):%Y-%m-%d}, commit {_commit()}, {_machine()}, one thread.", ""]
        for section, rows in self.sections.items():
            lines += [f"## {section}", "", "| what | figure | seconds |", "|---|---|---|"]
            lines += [f"| {what} | {figure} | {seconds:.0f} |" for what, figure, seconds in rows] + [""]
        return "\n".join([*lines, *self.pictures])


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + (", with changes" if git("status", "--porcelain", "-uno") else "")


def _machine() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{names[0].partition(': ')[2] if names else platform.machine()}, torch {torch.__version__}"
