"""Rules of the pages: each is silent on the repository and speaks on a page with one mistake."""

import ast
import re
from argparse import Namespace
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml

from soda_dist import cli
from soda_dist.commands import command_names, dispatch
from soda_dist.config import load_config
from soda_dist.config.ablation import load_group
from soda_dist.config.schema import RunConfig
from soda_dist.config.search import load_search
from soda_dist.data.sources import parse_options
from soda_dist.errors import UserError
from tests.docs.pages import PROGRAMS, ROOT, Page, commands, pages

_PATH = re.compile(r"(?:soda_dist|tests|docs|jobs|cluster|\.ci)/[\w./-]*\w")
_FIELD = re.compile(r"([a-z_]+(?:\.[a-z_]+)+)=\S+")
_NAMED = re.compile(r"[A-Z]+|.*/.*")
"""Names of presets, searches and groups that a page leaves to the reader, or that are files."""


class Parsed(Exception):  # noqa: N818 - an answer
    """The arguments of a command that was stopped after it had parsed them."""

    def __init__(self, arguments: Namespace) -> None:
        self.arguments = arguments


def parsed(words: list[str]) -> Namespace | None:
    """Parse the words after `soda-dist` as the command does; None = it has answered, as for `--help`."""
    parse, parse_intermixed = cli._Parser.parse_args, cli._Parser.parse_intermixed_args

    def stop(parse: Callable[..., Namespace]) -> Callable[..., Namespace]:
        def parse_and_stop(parser: cli._Parser, argv: list[str]) -> Namespace:
            raise Parsed(parse(parser, argv))

        return parse_and_stop

    with (
        patch.object(cli._Parser, "parse_args", stop(parse)),
        patch.object(cli._Parser, "parse_intermixed_args", stop(parse_intermixed)),
        patch("builtins.print"),
    ):
        try:
            dispatch(words)
        except Parsed as done:
            return done.arguments
        except SystemExit as done:
            assert not done.code
    return None


def check(words: list[str]) -> None:
    """Parse a command; raise a `UserError` if its options, its overrides or what they name do not exist.

    A name without arguments is a mention of the command.
    """
    if len(words) == 1 and words[0] in command_names():
        return
    args = vars(parsed(words) or Namespace())
    preset, group, search = (args.get(name) for name in ("preset", "group", "search"))
    overrides = args.get("overrides") or []
    if words[0] == "prepare_data" and args.get("kind"):
        parse_options(args["kind"], [*args["options"], *args["flags"]])
    if words[0] == "benchmark" and args.get("what") == "dci":
        return
    if group and not _NAMED.fullmatch(group):
        preset = load_group(group).preset
    if search and not _NAMED.fullmatch(search):
        load_search(search)
    if overrides or preset:
        load_config("demo" if preset is None or _NAMED.fullmatch(preset) else preset, overrides)


def commands_are_right(page: Page) -> Iterator[str]:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for line in page.lines():
        for words in commands(line):
            if words[0] not in PROGRAMS:
                close = get_close_matches(words[0], PROGRAMS, cutoff=0.8)
                yield from (f"{line}: did you mean {each}?" for each in close)
            elif words[0] == "make":
                wanted = [word for word in words[1:] if "=" not in word]
                yield from (f"{line}: no target {each}" for each in wanted if each not in targets)
            elif words[0] == "soda-dist" and words[1:]:
                yield from _complaint(line, words[1:])
            elif words[0] == "python" and words[1:2] == ["-m"] and not _exists(words[2]):
                yield f"{line}: no module {words[2]}"
            elif words[0] == "python" and words[1:2] != ["-m"]:
                name = re.fullmatch(r"jobs/(\w+)\.py", words[1])
                yield from _complaint(line, [name[1], *words[2:]]) if name else [f"{line}: no job"]


def _complaint(line: str, words: list[str]) -> Iterator[str]:
    if words == ["NAME"] or words[:2] == ["NAME", "--help"] or words[0].startswith("-"):
        return
    try:
        check(words)
    except UserError as error:
        yield f"{line}: {error}"


def _exists(module: str) -> bool:
    path = ROOT / module.replace(".", "/")
    return path.with_suffix(".py").is_file() or path.is_dir() or "." not in module


def snippets_are_python(page: Page) -> Iterator[str]:
    for block in page.blocks("python"):
        try:
            tree = ast.parse(block)
        except SyntaxError as error:
            yield f"{block.splitlines()[0]}: {error.msg}"
            continue
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("soda_dist"):
                names = [(node.module or "", alias.name) for alias in node.names]
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "soda_dist":
                names = [("soda_dist", node.attr)]
            yield from (f"{each[0]} has no {each[1]}" for each in names if not hasattr(import_module(each[0]), each[1]))


def yaml_loads(page: Page) -> Iterator[str]:
    for block in page.blocks("yaml"):
        try:
            list(yaml.safe_load_all(block))
        except yaml.YAMLError as error:
            yield f"{block.splitlines()[0]}: {error}"


def files_exist(page: Page) -> Iterator[str]:
    folder = (ROOT / page.name).parent
    yield from (f"{link}: a link to nothing" for link in page.links() if link and not (folder / link).exists())
    for span in page.spans():
        for path in span.split():
            if _PATH.fullmatch(path) and not re.search(r"[A-Z]{2,}", path) and not (ROOT / path).exists():
                yield f"{path}: not there"


def fields_exist(page: Page) -> Iterator[str]:
    for span in page.spans():
        for word in span.split():
            found = _FIELD.fullmatch(word)
            if found and found[1].partition(".")[0] in RunConfig.model_fields and not _has_field(found[1]):
                yield f"{word}: no field of the configuration"


def _has_field(path: str) -> bool:
    node: object = load_config("demo")
    for name in path.split("."):
        if not hasattr(node, name):
            return False
        node = getattr(node, name)
    return True


RULES = (commands_are_right, snippets_are_python, yaml_loads, files_exist, fields_exist)
BROKEN = [
    # rule, a page that breaks it, what the rule says of it
    (commands_are_right, "```\nsoda-dsit plan --preset demo\n```", "did you mean soda-dist?"),
    (commands_are_right, "```\nsoda-dist plna --preset demo\n```", "command: got plna"),
    (commands_are_right, "```\nsoda-dist plan --presets demo x=1 \\\n  y=2\n```", "--presets"),
    (commands_are_right, "```\npython jobs/plan.py --preset demos\n```", "--preset: got demos"),
    (commands_are_right, "`python jobs/pretrain.py --preset demo --data D --run R train.stps=3`", "did you mean steps"),
    (commands_are_right, "`soda-dist prepare_data folder --source A --data B clases=true`", "did you mean classes?"),
    (commands_are_right, "| `soda-dist plan --preset P [--jsn]` |", "--jsn"),
    (commands_are_right, "```\nray job submit --working-dir . -- python jobs/plan.py --pre demo -x\n```", "-x"),
    (commands_are_right, "`soda-dist tune --preset demo --search nothing --data D --run R`", "--search: got nothing"),
    (commands_are_right, "`soda-dist ablate --group nothing --out D`", "--group: got nothing"),
    (commands_are_right, "`make tset`", "no target tset"),
    (commands_are_right, "`python -m tests.nothing.here`", "no module"),
    (commands_are_right, "`python jobs/nothing.py --run R`", "command: got nothing"),
    (snippets_are_python, "```python\nfrom soda_dist.metrics import nothing\n```", "has no nothing"),
    (snippets_are_python, "```python\nimport soda_dist\nsoda_dist.lod('R')\n```", "soda_dist has no lod"),
    (snippets_are_python, "```python\nx = (1,\n```", "was never closed"),
    (yaml_loads, "```yaml\na: [1\n```", "expected"),
    (files_exist, "[a page](docs/nothing.md#top)", "a link to nothing"),
    (files_exist, "`soda_dist/nothing.py`", "not there"),
    (fields_exist, "`train.stps=3`", "no field"),
]


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_page_is_right(rule: Callable[[Page], Iterator[str]], page: Page) -> None:
    assert list(rule(page)) == []


@pytest.mark.parametrize(("rule", "text", "says"), BROKEN, ids=lambda value: getattr(value, "__name__", None))
def test_the_rule_speaks(rule: Callable[[Page], Iterator[str]], text: str, says: str) -> None:
    complaints = list(rule(Page("README.md", text)))
    assert any(says in complaint for complaint in complaints), complaints


def test_usages_are_filled_in() -> None:
    line = "python jobs/evaluate.py --encoder FILE|timm:NAME [--step N] x.y=[1,2] [a.b=value ...]  # why"
    assert commands(line) == [
        ["python", "jobs/evaluate.py", "--encoder", "FILE", "--step", "1", "x.y=[1,2]"],
    ]
    assert commands("ray job submit -- python jobs/plan.py && make demo")[1:] == [
        ["python", "jobs/plan.py"],
        ["make", "demo"],
    ]


def test_every_command_is_in_the_docs() -> None:
    text = (Path(ROOT) / "docs/commands.md").read_text()
    assert [name for name in command_names() if f"soda-dist {name}" not in text] == []


def test_the_readme_is_for_the_first_hour() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
