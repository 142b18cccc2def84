"""Reader of the Markdown pages: fenced blocks, code spans, links, and the command lines in them."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "cluster/README.md", "docs/*.md")
PROGRAMS = ("soda-dist", "python", "make", "pip", "ray", "docker", "kubectl", "export", "source", "bash", "git")
"""First words of shell lines."""

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_DROPPED = {"...", "a.b=value", "option=value"}
_VALUES = {"N": "1", "Q": "1", "P": "demo", "KIND": "folder"}
"""Placeholders that an option or an argument checks, and what stands for them."""


class Page(NamedTuple):
    """A page's name and text."""

    name: str
    text: str

    def blocks(self, language: str) -> list[str]:
        """Return the fenced blocks of a language, `` for those that name none."""
        return [body for found, body in _FENCE.findall(self.text) if found == language]

    def spans(self) -> list[str]:
        """Return the code spans outside fenced blocks, with `|` as it is shown in a table."""
        return [span.replace("\\|", "|") for span in _SPAN.findall(_FENCE.sub("", self.text))]

    def links(self) -> list[str]:
        """Return the addresses of links and pictures that lie in the repository, without their anchors."""
        found = _LINK.findall(_FENCE.sub("", self.text))
        return [link.partition("#")[0] for link in found if "://" not in link and not link.startswith("#")]

    def lines(self) -> Iterator[str]:
        """Yield shell lines of fenced blocks, continued ones joined, and of code spans."""
        for block in (*self.blocks(""), *self.blocks("sh"), *self.blocks("bash")):
            yield from (line.strip() for line in block.replace("\\\n", " ").splitlines() if line.strip())
        yield from (span for span in self.spans() if span.split()[0] in PROGRAMS and " " in span)


def pages(root: Path = ROOT) -> list[Page]:
    found = [path for pattern in PAGES for path in sorted(root.glob(pattern))]
    return [Page(str(path.relative_to(root)), path.read_text()) for path in found]


def commands(line: str) -> list[list[str]]:
    """Split a shell line into the words of its commands, placeholders of a usage filled in.

    `[--option VALUE]` stands for itself, `A|B` for A, `$NAME` for nothing; what follows `--` of `ray job submit` is a
    command of its own.
    """
    found = []
    for part in re.split(r"\s*(?:&&|;)\s*", re.sub(r"\s+#.*$", "", line)):
        words = [word for word in map(_filled, _words(part)) if word and word not in _DROPPED and word[0] != "$"]
        at = words.index("--") if words[:1] == ["ray"] and "--" in words else len(words)
        found += [each for each in (words[:at], words[at + 1 :]) if each]
    return found


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()  # an apostrophe in what is no command


def _filled(word: str) -> str:
    while word.startswith("[") or word.count("]") > word.count("["):
        word = word[1:] if word.startswith("[") else word[:-1]
    word = word.partition("|")[0]
    return _VALUES.get(word, word)
