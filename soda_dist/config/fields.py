"""Field types, the base class of configuration nodes, and values as an override spells them."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from soda_dist.config.problems import Problem, ProblemError
from soda_dist.config.uris import split_uri
from soda_dist.errors import UserError

Rate = Annotated[float, Field(ge=0.0, lt=1.0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NotNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Layers = Annotated[int, Field(ge=1, le=64)]
"""Number of layers, heads or multiples of a width: bounded, as `Width`, since a configuration may be a stranger's."""
Width = Annotated[int, Field(ge=1, le=65_536)]
"""Number of channels."""

Sources = Annotated[int, Field(ge=1, le=16)]
"""Number of source views."""


def _checked_uri(text: str) -> str:
    try:
        split_uri(text)
    except UserError as error:
        raise ProblemError(Problem("", error.got, error.allowed, error.remedy)) from None
    return text


Uri = Annotated[str, AfterValidator(_checked_uri)]
"""Local path or URI, without credentials: the configuration is stored with the run."""


class Node(BaseModel):
    """Strict, frozen node: unknown keys and wrong types are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def as_yaml(value: Any) -> str:
    """Format a value as one line of YAML, for an override."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(as_yaml, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
