"""Load a configuration from a preset or file, with overrides, and validate it."""

import re
from collections.abc import Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from soda_dist.config.problems import first_problem
from soda_dist.config.schema import RunConfig
from soda_dist.errors import UserError

PRESETS = resources.files("soda_dist.config") / "presets"
Model = TypeVar("Model", bound=BaseModel)

MAX_BYTES, MAX_DEPTH, MAX_VALUES = 64 << 10, 20, 10_000
"""Limits of a YAML text: its size, its nesting, and its values after aliases are expanded."""
_SEE_CONFIG = "see --print-config for the whole configuration"


class _Loader(yaml.SafeLoader):
    """Reads `1e-4` as a float, as in YAML 1.2; rejects duplicate keys, and nesting and aliases that grow too large."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._values = 0
        self._sizes: dict[yaml.Node, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Count an alias as all values that it stands for, since construction copies them."""
        event, before = self.peek_event(), self._values
        self._depth += 1
        self._expect(self._depth <= MAX_DEPTH, f"more than {MAX_DEPTH} levels", event)
        node = super().compose_node(parent, index)
        alias = isinstance(event, yaml.AliasEvent)
        self._expect(node is None or not alias or node in self._sizes, "an alias inside the value it names", event)
        self._values += self._sizes[node] if alias and node else 1
        self._expect(self._values <= MAX_VALUES, f"more than {MAX_VALUES:,} values", event)
        if node is not None and not alias:
            self._sizes[node] = self._values - before
        self._depth -= 1
        return node

    def _expect(self, holds: bool, problem: str, event: yaml.Event) -> None:
        if not holds:
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)  # type: ignore[arg-type]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key that is a collection", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key.value}", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes strings that `_Loader` would read as numbers."""


for _yaml in (_Loader, _Dumper):
    _yaml.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
    )


def preset_names() -> list[str]:
    return sorted(entry.name.removesuffix(".yaml") for entry in PRESETS.iterdir() if entry.name.endswith(".yaml"))


def parse_yaml(text: str | bytes, where: str) -> Any:
    """Parse YAML to plain values, with lists as tuples; `where` names the text in errors.

    Raises:
        UserError: not YAML in UTF-8, beyond MAX_BYTES, MAX_DEPTH or MAX_VALUES, or a number beyond 64 bits.
    """
    if len(text) > MAX_BYTES:
        raise UserError(where, f"{len(text):,} bytes", f"YAML of at most {MAX_BYTES:,} bytes", "shorten it")
    try:
        return _frozen(yaml.load(text.decode() if isinstance(text, bytes) else text, Loader=_Loader))
    except UnicodeDecodeError:
        raise UserError(where, "text that is not UTF-8", "YAML in UTF-8", "save it as UTF-8") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist, or a huge number
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        got = f"line {mark.line + 1}: {problem}" if mark else "text that is not YAML"
        raise UserError(where, got, "YAML", "correct it") from None


def read_yaml(path: Traversable, where: str) -> Any:
    """Read and parse a local YAML file; raise `UserError` as `parse_yaml` does, and for an unreadable file."""
    return parse_yaml(_read_text(path, where), where)


def _read_text(path: Traversable, where: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError:
        raise UserError(where, str(path), "a readable text file in UTF-8", "check the file") from None


def _frozen(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_frozen(item) for item in value)
    if isinstance(value, dict):
        return {key: _frozen(item) for key, item in value.items()}
    if isinstance(value, int) and abs(value) >= 1 << 63:
        raise ValueError("a number beyond 64 bits")
    return value


def load_config(preset: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Load a shipped preset or a YAML file and apply `a.b=value` overrides; raise `UserError` for any mistake."""
    return parse_config(_preset_text(preset), preset, overrides)


def parse_config(text: str | bytes, where: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Load YAML or JSON text as `load_config` does; `where` names it in errors."""
    tree = parse_yaml(text, where)
    if not isinstance(tree, dict | None):
        raise UserError(where, type(tree).__name__, "a mapping of sections", "start from a shipped preset")
    tree = tree or {}
    for override in overrides:
        _apply(tree, override)
    return validate(RunConfig, tree, _SEE_CONFIG)


def with_fields(config: RunConfig, fields: dict[str, Any]) -> RunConfig:
    """Replace fields such as `encoder.lr_ratio` in a copy; raise `UserError` as `load_config` does."""
    tree = config.model_dump()
    for path, value in fields.items():
        *parents, leaf = path.split(".")
        node: Any = tree
        for key in parents:
            node = node.get(key) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            raise UserError(path, "an unknown field", "a field of the configuration", "see --print-config")
        node[leaf] = _frozen(value)
    return validate(RunConfig, tree, _SEE_CONFIG)


def with_overrides(config: RunConfig, overrides: Sequence[str], sections: Sequence[str], remedy: str) -> RunConfig:
    """Apply `a.b=value` overrides; raise `UserError` as `load_config` does, with `remedy` for other sections."""
    fields = {}
    for override in overrides:
        path, equals, value = override.partition("=")
        if not equals or path.split(".")[0] not in sections:
            allowed = ", ".join(f"{section}.field=value" for section in sections)
            raise UserError("override", override, allowed, remedy)
        fields[path] = parse_yaml(value, path)
    return with_fields(config, fields)


def leaves(tree: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Flatten a tree to its leaves by dotted path."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= leaves(value, f"{above}{name}.") if isinstance(value, dict) else {f"{above}{name}": value}
    return found


def _preset_text(preset: str) -> str | bytes:
    if preset.endswith((".yaml", ".yml")):
        path = Path(preset)
        if not path.is_file():
            raise UserError("--preset", preset, "an existing YAML file", "check the path")
        return _read_text(path, "--preset")
    if preset not in preset_names():
        raise UserError("--preset", preset, ", ".join(preset_names()) + ", or a .yaml file", "choose one of them")
    return (PRESETS / f"{preset}.yaml").read_text()


def _apply(tree: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise UserError("override", override, "section.field=value", "write, for example, train.steps=1000")
    *parents, leaf = path.split(".")
    for key in parents:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise UserError(path, override, "a field of a section", f"{key} is a value, not a section")
    value = parse_yaml(text, path)
    if isinstance(value, dict):
        raise UserError(path, override, "a single field", f"write {path}.FIELD=value for each")
    tree[leaf] = value


def validate(model: type[Model], tree: dict[str, Any], remedy: str = "correct it") -> Model:
    """Validate `tree`; raise its first problem as `UserError`, with `remedy` as in `first_problem`."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise UserError(*first_problem(model, error, remedy)) from None


def dump_config(config: BaseModel) -> str:
    """Format all fields as YAML that `load_config` reads back to an equal configuration."""
    plain = _plain(config.model_dump())
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=100)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
