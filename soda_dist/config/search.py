"""Search file of a sweep: search space, number of trials, early stopping."""

from importlib import resources
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from soda_dist.config.fields import Count, Node, NotNegative
from soda_dist.config.load import read_yaml, validate
from soda_dist.config.problems import Problem, ProblemError
from soda_dist.errors import UserError

SEARCHES = resources.files("soda_dist.config") / "searches"


class Range(Node):
    """Distribution of a field's value: exactly one of three."""

    uniform: tuple[float, float] | None = None
    log_uniform: tuple[float, float] | None = None
    choice: tuple[float | int | str | bool, ...] | None = None

    @model_validator(mode="after")
    def _one(self) -> "Range":
        given = [name for name in ("uniform", "log_uniform", "choice") if getattr(self, name) is not None]
        if len(given) != 1:
            got, allowed = ", ".join(given) or "nothing", "one of uniform, log_uniform, choice"
            raise ProblemError(Problem("range", got, allowed, "give exactly one"))
        for name in ("uniform", "log_uniform"):
            bounds = getattr(self, name)
            if bounds is not None and not bounds[0] < bounds[1]:
                got = f"{bounds[0]}, {bounds[1]}"
                raise ProblemError(Problem(name, got, "low < high", "give the smaller bound first"))
        if self.log_uniform is not None and self.log_uniform[0] <= 0:
            low = self.log_uniform[0]
            raise ProblemError(Problem("log_uniform", low, "bounds above 0", "use uniform for a range with 0"))
        if self.choice == ():
            raise ProblemError(Problem("choice", "an empty list", "at least one value", "list the values to try"))
        return self


class Search(Node):
    """A sweep over pretraining runs, ranked by the accuracy of the linear probe."""

    seed: Annotated[int, Field(ge=0)] = 0
    trials: Count = 8
    concurrent: Count = 1
    steps: Count
    """Steps of a trial that is not stopped early."""
    first_rung: Count
    """Steps before the first ranking; each later rung is `reduction` times as far."""
    reduction: Annotated[int, Field(ge=2)] = 2
    """ASHA keeps one in `reduction` trials at each rung."""
    space: Annotated[dict[str, Range], Field(min_length=1)]
    """Configuration field -> distribution of its values."""
    guidance: tuple[NotNegative, ...] = ()
    """Guidance scales to try at sampling on the best trial, without training; empty = no search."""

    @property
    def rungs(self) -> list[int]:
        """Steps at which a trial is ranked; the last is `steps`."""
        rungs, step = [], self.first_rung
        while step < self.steps:
            rungs.append(step)
            step *= self.reduction
        return [*rungs, self.steps]

    @model_validator(mode="after")
    def _rungs_within(self) -> "Search":
        if self.first_rung > self.steps:
            got = f"{self.first_rung} with steps={self.steps}"
            raise ProblemError(Problem("first_rung", got, "<= steps", "lower first_rung or raise steps"))
        return self


def search_names() -> list[str]:
    return sorted(entry.name.removesuffix(".yaml") for entry in SEARCHES.iterdir() if entry.name.endswith(".yaml"))


def load_search(name: str) -> Search:
    """Load a shipped search or a YAML file; raise `UserError` as `load_config` does."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else SEARCHES / f"{name}.yaml"
    if not path.is_file():
        raise UserError("--search", name, f"{', '.join(search_names())}, or a .yaml file", "choose one of them")
    tree = read_yaml(Path(str(path)), name)
    return validate(Search, tree if isinstance(tree, dict) else {})
