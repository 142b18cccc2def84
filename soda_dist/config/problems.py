"""Configuration mistakes as values, from our validators or pydantic's, to be shown as `UserError`."""

from collections.abc import Mapping
from difflib import get_close_matches
from types import UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

SHOWN = 200
"""Characters of a value in a message."""


class Problem(NamedTuple):
    """A mistake, with the arguments of `UserError`."""

    field: str
    """Dotted path, relative to the node that found it."""
    got: object
    allowed: str
    remedy: str


class ProblemError(ValueError):
    """Raised by validators; pydantic keeps it in its error's `ctx`."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(*problem)
        self.problem = problem


_ALLOWED = {
    "bool_type": "boolean",
    "dict_type": "mapping",
    "finite_number": "a finite number",
    "float_type": "number",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "greater than or equal to {ge}",
    "int_type": "integer",
    "invalid_key": "keys that are strings",
    "less_than": "less than {lt}",
    "less_than_equal": "less than or equal to {le}",
    "literal_error": "{expected}",
    "model_type": "a mapping of the fields of {class_name}",
    "multiple_of": "a multiple of {multiple_of}",
    "string_pattern_mismatch": "text that matches {pattern}",
    "string_too_long": "at most {max_length} characters",
    "string_type": "string",
    "too_long": "at most {max_length} items",
    "too_short": "{min_length} or more items",
    "tuple_type": "list",
}
"""Pydantic error type -> allowed values; `{}` names an entry of the error's `ctx`."""


def first_problem(model: type[BaseModel], error: ValidationError, remedy: str) -> Problem:
    """Choose the mistake to show; `remedy` is for values that a field rejects."""
    # Unknown keys first, since a misspelt field is also reported as missing.
    found = min(error.errors(), key=lambda details: details["type"] != "extra_forbidden")
    field = _shortened(".".join(map(str, found["loc"])))
    if found["type"] == "extra_forbidden":
        return _unknown_key(field, found["loc"], model)
    if found["type"] == "missing":
        return Problem(field, "nothing", "a value", "add it")
    raised = found.get("ctx", {}).get("error")
    if isinstance(raised, ProblemError):
        problem = raised.problem
        return problem._replace(field=".".join(filter(None, (field, problem.field))))
    return Problem(field, _shortened(repr(found["input"])), _allowed(found), remedy)


def _shortened(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text):,} characters)"


def _unknown_key(field: str, loc: tuple[int | str, ...], model: type[BaseModel]) -> Problem:
    known = list(_model_at(model, loc[:-1]).model_fields)
    close = get_close_matches(str(loc[-1]), known, n=1)
    return Problem(field, "an unknown key", ", ".join(known), f"did you mean {close[0]}?" if close else "remove it")


def _model_at(annotation: Any, loc: tuple[int | str, ...]) -> type[BaseModel]:
    """Find the model at a path through models, optional fields, tuples of one type and mappings."""
    if get_origin(annotation) in (Union, UnionType):
        annotation = next(member for member in get_args(annotation) if member is not type(None))
    if not loc:
        return annotation
    if get_origin(annotation) is tuple:
        return _model_at(get_args(annotation)[0], loc[1:])
    if get_origin(annotation) is dict:
        return _model_at(get_args(annotation)[1], loc[1:])
    return _model_at(annotation.model_fields[loc[0]].annotation, loc[1:])


def _allowed(found: ErrorDetails) -> str:
    text = _ALLOWED.get(found["type"])
    return found["msg"] if text is None else text.format_map(_shown(found.get("ctx", {})))


def _shown(ctx: Mapping[str, Any]) -> dict[str, Any]:
    """Convert whole floats to integers: bounds read 1, not 1.0."""
    return {name: int(v) if isinstance(v, float) and v.is_integer() else v for name, v in ctx.items()}
