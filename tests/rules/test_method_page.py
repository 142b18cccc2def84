"""The page on the method, docs/method.md, says what is true: its fields, names, values, presets and commands exist.

Rules as in `test_structure`: each is silent on the repository and speaks on a copy of it with one mistake.
"""

import ast
import re
import shutil
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from soda_dist.config import load_config
from soda_dist.config.load import parse_yaml
from soda_dist.config.schema import RunConfig
from soda_dist.errors import UserError

ROOT = Path(__file__).parents[2]
PAGE = "docs/method.md"
PRESETS = "soda_dist/config/presets"
PLACEHOLDERS = {"URI": "file.safetensors", "SHA256": "a" * 64}
"""Words that the page leaves to the reader, and what stands for them when a command is tried."""
PARTS = (
    *(
        f"Section {number}"
        for number in ("3.1", "3.2", "3.2.1", "3.3", "3.4", "4.1", "4.2.1", "4.2.2", "4.3.1", "4.3.2")
    ),
    *(f"Appendix {name}" for name in ("B", "C", "D.1", "D.2", "D.3", "E.1", "E.2", "E.3", "F.1")),
    *(f"Appendix G.{number}" for number in range(1, 5)),
    *(f"Table {number}" for number in range(1, 13)),
    *(f"Figure {number}" for number in (3, 6, 9, 10)),
)
READINGS = "Our readings"

_QUOTED = re.compile(r"`([^`\n]+)`")
_FIELD = re.compile(r"[a-z][a-z0-9_]*(?:\.[a-z][a-z0-9_]*)+")
_NAME = re.compile(r"soda_dist(?:\.\w+)+")
_VALUE = re.compile(r"([a-z][a-z0-9_.]*)=(\S+)")
_HEADING = re.compile(r"^#+ ((?:Section|Table|Figure|Appendix) [A-G0-9.]*[A-G0-9]|[A-Z][^\n:]*)", re.MULTILINE)
_FILES = ("json", "png", "html", "safetensors", "md", "py", "yaml", "jsonl")


def parts(root: Path) -> dict[str, str]:
    """The page's text by heading: `Table 8`, `Section 3.1`, or the whole heading where it is none of the paper's."""
    pieces = _HEADING.split((root / PAGE).read_text())
    return dict(zip(pieces[1::2], pieces[2::2], strict=True))


def rows(part: str) -> list[list[str]]:
    """The cells of the tables in a part, without heads and rules."""
    lines = part.splitlines()
    heads = {number - 1 for number, line in enumerate(lines) if re.fullmatch(r"\|[-|: ]+\|", line)}
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for number, line in enumerate(lines)
        if line.startswith("|") and number not in heads and number - 1 not in heads
    ]


def commands(text: str) -> list[tuple[str, list[str]]]:
    """(preset, overrides) of each quoted `--preset NAME a.b=value ...`, placeholders filled in."""
    found = []
    for quoted in _QUOTED.findall(text):
        if quoted.startswith("--preset "):
            _, preset, *overrides = quoted.split()
            found.append((preset, [_filled(override) for override in overrides]))
    return found


def _filled(override: str) -> str:
    field, equals, value = override.partition("=")
    return f"{field}{equals}{PLACEHOLDERS.get(value, value)}"


def _words(root: Path) -> Iterator[str]:
    for quoted in _QUOTED.findall((root / PAGE).read_text()):
        yield from quoted.split()


def _field(path: str) -> Any:
    """The schema's field of this path, or None."""
    *sections, leaf = path.split(".")
    node: Any = RunConfig
    for name in sections:
        field = node.model_fields.get(name)
        node = field.annotation if field else None
        if not (isinstance(node, type) and issubclass(node, BaseModel)):
            return None
    return node.model_fields.get(leaf)


def fields_are_the_schemas(root: Path) -> list[str]:
    paths = {word.partition("=")[0] for word in _words(root)}
    return [
        f"{PAGE}: {path} is no field of the configuration"
        for path in sorted(paths)
        if _FIELD.fullmatch(path)
        and not path.startswith("soda_dist.")
        and path.rpartition(".")[2] not in _FILES
        and _field(path) is None
    ]


def names_are_the_codes(root: Path) -> list[str]:
    return [
        f"{PAGE}: {name} is not there"
        for name in sorted({word for word in _words(root) if _NAME.fullmatch(word)})
        if not _exists(name)
    ]


def _exists(name: str) -> bool:
    """Whether a dotted name is a module, or what a module has."""
    path, attributes = name, list[str]()
    while path:
        try:
            found: Any = import_module(path)
            break
        except ModuleNotFoundError:
            path, _, last = path.rpartition(".")
            attributes.insert(0, last)
    for attribute in attributes:
        if not hasattr(found, attribute):
            return False
        found = getattr(found, attribute)
    return True


def values_are_allowed(root: Path) -> list[str]:
    complaints = []
    for word in sorted(set(_words(root))):
        path, text = match.groups() if (match := _VALUE.fullmatch(word)) else ("", "")
        field = _field(path)
        if field is None:
            continue  # a command's part of another kind, or a complaint of `fields_are_the_schemas`
        try:
            value = parse_yaml(PLACEHOLDERS.get(text, text), path)
            TypeAdapter(Annotated[field.annotation, field]).validate_python(value, strict=True)
        except (UserError, ValidationError) as error:
            complaints.append(f"{PAGE}: {word}: {' '.join(str(error).split())}")
    return complaints


def commands_load(root: Path) -> list[str]:
    complaints = []
    for preset, overrides in commands((root / PAGE).read_text()):
        try:
            load_config(preset, overrides)
        except UserError as error:
            complaints.append(f"{PAGE}: --preset {preset} {' '.join(overrides)}: {error}")
    return complaints


def every_preset_is_named(root: Path) -> list[str]:
    words = set(_words(root))
    names = sorted(path.stem for path in (root / PRESETS).glob("*.yaml"))
    return [f"{PAGE}: the preset {name} is not named" for name in names if name not in words]


def every_part_of_the_paper_is_covered(root: Path) -> list[str]:
    found = parts(root)
    missing = [f"{PAGE}: no part for {name}" for name in PARTS if name not in found]
    return missing + [f"{PAGE}: {name} has no row" for name in PARTS if name in found and not rows(found[name])]


def every_reading_is_listed(root: Path) -> list[str]:
    listed = set(_NAME.findall(parts(root).get(READINGS, "")))
    modules = (
        (str(path.relative_to(root)).removesuffix(".py").removesuffix("/__init__").replace("/", "."), path)
        for path in sorted((root / "soda_dist").rglob("*.py"))
    )
    return [
        f"{PAGE}: '{READINGS}' has none of {module}"
        for module, path in modules
        if _has_reading(path) and not any(name == module or name.startswith(f"{module}.") for name in listed)
    ]


def _has_reading(path: Path) -> bool:
    """Whether a docstring, a field's among them, says "our reading"."""
    statements = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Expr))
    texts = (s.value.value for s in statements if isinstance(s.value, ast.Constant) and isinstance(s.value.value, str))
    return any("our reading" in " ".join(text.split()).lower() for text in texts)


Rule = Callable[[Path], list[str]]
BROKEN: list[tuple[Rule, str, str, str, str]] = [
    # rule, file, a passage ("": the end), what stands there instead, what the rule says of it
    (fields_are_the_schemas, PAGE, "", "`data.sorce_size`", "data.sorce_size is no field"),
    (fields_are_the_schemas, PAGE, "", "`encoder.arch.depth=3`", "encoder.arch.depth is no field"),
    (fields_are_the_schemas, PAGE, "", "`--preset imagenet a.b=1`", "a.b is no field"),
    (names_are_the_codes, PAGE, "", "`soda_dist.models.denoiser.Denoizer`", "Denoizer is not there"),
    (names_are_the_codes, PAGE, "", "`soda_dist.models.nothing`", "soda_dist.models.nothing is not there"),
    (names_are_the_codes, PAGE, "", "`soda_dist.models.soda.Soda.lose`", "Soda.lose is not there"),
    (values_are_allowed, PAGE, "", "`denoiser.modulation=product`", "denoiser.modulation=product"),
    (values_are_allowed, PAGE, "", "`method=sodaa`", "method=sodaa"),
    (values_are_allowed, PAGE, "", "`data.sources=[1,17]`", "data.sources=[1,17]"),
    (values_are_allowed, PAGE, "", "`encoder.latent_dim=2048.5`", "encoder.latent_dim=2048.5"),
    (commands_load, PAGE, "", "`--preset imagenett`", "--preset: got imagenett"),
    (commands_load, PAGE, "", "`--preset imagenet denoiser.conditioning=broadcast`", "denoiser.layer_mask_rate: got"),
    (every_preset_is_named, f"{PRESETS}/extra.yaml", "", "#   make demo\n", "the preset extra is not named"),
    (every_part_of_the_paper_is_covered, PAGE, "# Table 8", "# Table VIII", "no part for Table 8"),
    (every_part_of_the_paper_is_covered, PAGE, "# Section 3.2.1", "# Section 3.2", "no part for Section 3.2.1"),
    (every_part_of_the_paper_is_covered, PAGE, "# Figure 9", "# Figure 9\n\n# Other", "Figure 9 has no row"),
    (every_reading_is_listed, "soda_dist/models/extra.py", "", '"""X. Our\nreading: x."""', "soda_dist.models.extra"),
    (every_reading_is_listed, "soda_dist/errors.py", "", 'x = 1\n"""X (our reading)."""', "soda_dist.errors"),
    (every_reading_is_listed, PAGE, f"# {READINGS}", "# Other", "soda_dist.config.sections"),
]
RULES = list(dict.fromkeys(rule for rule, *_ in BROKEN))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_page_keeps_the_rule(rule: Rule) -> None:
    assert rule(ROOT) == []


@pytest.mark.parametrize(("rule", "file", "passage", "mistake", "says"), BROKEN)
def test_the_rule_speaks_of_a_mistake(
    rule: Rule, file: str, passage: str, mistake: str, says: str, tmp_path: Path
) -> None:
    shutil.copytree(ROOT / "soda_dist", tmp_path / "soda_dist", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    assert rule(tmp_path) == []
    path = tmp_path / file
    text = path.read_text() if path.exists() else ""
    assert passage in text
    path.write_text(text.replace(passage, mistake, 1) if passage else f"{text}\n{mistake}\n")
    complaints = rule(tmp_path)
    assert any(says in complaint for complaint in complaints), complaints


def test_every_rule_is_tried() -> None:
    here = ast.parse(Path(__file__).read_text())
    looks = [f for f in here.body if isinstance(f, ast.FunctionDef) and ast.unparse(f.returns or f) == "list[str]"]
    assert {f.name for f in looks if f.args.args[0].arg == "root"} == {rule.__name__ for rule in RULES}
