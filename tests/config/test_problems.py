"""A mistake stays a value until it is shown: no text can break its line, and no text of pydantic's reaches the user."""

import sys
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError, model_validator

from soda_dist import cli
from soda_dist.config import RunConfig
from soda_dist.config.ablation import Ablation
from soda_dist.config.fields import Node
from soda_dist.config.load import validate
from soda_dist.config.problems import Problem, ProblemError, first_problem
from soda_dist.config.search import Search
from soda_dist.data.sources import SOURCES, parse_options
from soda_dist.errors import UserError

SEARCH: dict[str, Any] = {"steps": 8, "first_rung": 2, "space": {"optim.lr": {"uniform": (0.1, 0.2)}}}
GROUP: dict[str, Any] = {
    "title": "t",
    "data": {"kind": "synthetic", "options": {"objects": 9}},
    "preset": "solids",
    "measures": ({"ours": "probe.top1", "paper": ({"table": "1", "data": "d", "ours": "o"},)},),
    "variants": ({"name": "SODA"},),
    "claims": ({"measure": 0, "variant": "SODA", "above": ("SODA",)},),
}
MODELS = [(RunConfig, RunConfig().model_dump()), (Search, SEARCH), (Ablation, GROUP)]
MODELS += [(kind.options, {}) for kind in SOURCES.values()]
WRONG: list[Any] = [
    None, True, 0, -1, 2, 10**30, -0.5, 0.5, float("nan"), float("inf"), "", "a|b", "a" * 99, (), (1,), (1, 2, 3),
    ("a|b", None), {}, {"a|b": 1}, {1: 2}, object(), b"x",
]  # fmt: skip
SPOILT = st.text(st.sampled_from("|;:=\n\t 'a{}%é"), max_size=12)
"""Texts that would break a message that is joined, split or formatted."""


def paths(tree: Any) -> Iterator[tuple[Any, ...]]:
    """The path of each value in a tree of mappings and tuples."""
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, tuple) else ()
    for key, value in entries:
        yield (key,)
        yield from ((key, *rest) for rest in paths(value))


def replaced(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy of the tree with another value at the path."""
    if not path:
        return value
    if isinstance(tree, dict):
        return tree | {path[0]: replaced(tree[path[0]], path[1:], value)}
    return tuple(replaced(item, path[1:], value) if at == path[0] else item for at, item in enumerate(tree))


def tree_of(model: type[BaseModel], given_fields: dict[str, Any]) -> dict[str, Any]:
    """The given fields and the defaults of the others."""
    return model(**given_fields).model_dump() | given_fields


def text_fields(model: type[BaseModel], above: str = "") -> Iterator[str]:
    """Dotted paths of the fields that take any text, or texts."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from text_fields(field.annotation, f"{above}{name}.")
        elif field.annotation is str or str in get_args(field.annotation):
            yield f"{above}{name}"


TEXT_FIELDS = list(text_fields(RunConfig))


def complaint(model: type[BaseModel], tree: dict[str, Any]) -> UserError | None:
    try:
        validate(model, tree)
    except UserError as error:
        line = str(error)
        assert "\n" not in line and all((error.field, error.allowed, error.remedy)), line
        assert line == " ".join(f"{error.field}: got {error.got}; allowed: {error.allowed}; {error.remedy}".split())
        return error
    return None


@pytest.mark.parametrize(("model", "fields"), MODELS)
def test_no_text_of_pydantics_is_shown(model: type[BaseModel], fields: dict[str, Any]) -> None:
    tree, refused = tree_of(model, fields), 0
    for path in paths(tree):
        for value in WRONG:
            wrong = replaced(tree, path, value)
            error = complaint(model, wrong)
            if error is not None:
                refused += 1
                with pytest.raises(ValidationError) as caught:
                    model.model_validate(wrong)
                assert error.allowed not in [details["msg"] for details in caught.value.errors()]
                assert "Input should" not in error.allowed and "should have" not in error.allowed, error
    assert refused >= len(tree)


@pytest.mark.parametrize(("model", "fields"), MODELS)
def test_an_unknown_key_is_named_at_any_depth(model: type[BaseModel], fields: dict[str, Any]) -> None:
    tree = tree_of(model, fields)
    free = {("data", "options"), ("fields",), ("space",)}
    """Mappings whose keys the user chooses."""
    for path in ((), *paths(tree)):
        node = tree
        for key in path:
            node = node[key]
        if isinstance(node, dict) and not (path in free or path[-1:] in (("fields",), ("paper",))):
            error = complaint(model, replaced(tree, path, node | {"zzz|": 1}))
            assert error is not None and error.field == ".".join(map(str, (*path, "zzz|")))
            assert error.got == "an unknown key" and error.remedy == "remove it"
            assert error.allowed.split(", ") == [*_known(model, path)]


def _known(model: type[BaseModel], path: tuple[Any, ...]) -> Iterator[str]:
    """Field names of the model at a path, as a value of it has them."""
    node: Any = model(**{RunConfig: {}, Search: SEARCH, Ablation: GROUP}.get(model, {}))
    for key in path:
        node = getattr(node, key) if isinstance(node, BaseModel) else node[key]
    yield from type(node).model_fields


def test_text_fields_are_found() -> None:
    assert {"train.online_probe_label", "encoder.model", "data.train_split", "evaluation.label"} < {*TEXT_FIELDS}


@pytest.mark.parametrize("field", TEXT_FIELDS)
@given(text=SPOILT)
def test_any_text_loads_or_is_one_correct_line(field: str, text: str) -> None:
    tree: dict[str, Any] = {}
    *sections, leaf = field.split(".")
    node = tree
    for name in sections:
        node = node.setdefault(name, {})
    node[leaf] = text
    error = complaint(RunConfig, tree)
    if error is None:
        value: Any = RunConfig.model_validate(tree)
        for name in field.split("."):
            value = getattr(value, name)
        assert value == text
    else:
        assert error.field in (field, *(f"encoder.{name}" for name in ("model", "weights", "weights_sha256")))


@given(text=SPOILT)
def test_any_text_of_a_group_a_search_and_an_import_is_one_correct_line(text: str) -> None:
    claim = {"measure": 0, "variant": text, "above": ("SODA",)}
    error = complaint(Ablation, GROUP | {"claims": (claim,)})
    assert error is not None and (error.field, error.got) == ("claims", text)
    complaint(Ablation, GROUP | {"title": text, "preset": text})
    complaint(Search, SEARCH | {"space": {text: {"uniform": (2.0, 1.0)}}})
    with pytest.raises(UserError) as caught:
        parse_options("synthetic", [f"objects='{text.replace(chr(39), '')}'"])
    assert caught.value.field == "objects" and "\n" not in str(caught.value)


def test_a_label_with_a_bar_ends_a_job_with_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = cli.parser("a job")
    cli.add_config(arguments, preset="demo")
    monkeypatch.setattr(sys, "argv", ["job", "train.online_probe_label='a|b'"])
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda argv: str(cli.config_of(cli.parse(arguments, argv))))
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        "error: train.online_probe_label: got a|b with train.online_probe=false; allowed: nothing; "
        "remove it, or set train.online_probe=true\n"
    )


def test_too_many_synthetic_objects_are_refused_with_their_number() -> None:
    with pytest.raises(UserError, match=r"^objects: got 600000 in all splits; allowed: up to 480000; lower it"):
        parse_options("synthetic", ["objects=480000"])


class Inner(Node):
    a: int = 0

    @model_validator(mode="after")
    def _even(self) -> "Inner":
        if self.a % 2:
            raise ProblemError(Problem("a", f"{self.a}|", "even|numbers", "round it|up"))
        return self


class Outer(Node):
    several: tuple[Inner, ...] = ()
    named: dict[str, Inner] | None = None
    one: Inner | None = None


@pytest.mark.parametrize(
    ("tree", "field"),
    [
        ({"several": ({}, {"a": 1})}, "several.1.a"),
        ({"named": {"x|y": {"a": 1}}}, "named.x|y.a"),
        ({"one": {"a": 1}}, "one.a"),
    ],
)
def test_a_validators_problem_gets_the_path_of_its_node(tree: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(tree)
    assert first_problem(Outer, caught.value, "-") == Problem(field, "1|", "even|numbers", "round it|up")


@pytest.mark.parametrize(
    ("tree", "field"),
    [
        ({"several": ({"b": 1},)}, "several.0.b"),
        ({"named": {"x": {"b": 1}}}, "named.x.b"),
        ({"one": {"b": 1}}, "one.b"),
        ({"one": {"a": "x", "b": 1}}, "one.b"),
    ],
)
def test_an_unknown_key_lists_the_keys_of_its_node(tree: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(tree)
    assert first_problem(Outer, caught.value, "-") == Problem(field, "an unknown key", "a", "remove it")
