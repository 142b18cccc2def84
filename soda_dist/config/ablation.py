"""Groups of ablations from YAML: variants of one configuration, measures, and claims of the paper."""

import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from soda_dist.config.fields import Count, CountOrZero, Node, Sources, as_yaml
from soda_dist.config.load import load_config, read_yaml, validate, with_fields
from soda_dist.config.problems import Problem, ProblemError
from soda_dist.config.schema import RunConfig
from soda_dist.errors import UserError

GROUPS = resources.files("soda_dist.config") / "ablations"


class PaperColumn(Node):
    """Column of a table in the paper."""

    table: str
    data: str
    """Data set of the table."""
    ours: str
    """Key in `soda_dist.report.paper_columns.OURS`."""
    sources: Sources | None = None
    """Number of source views, if the table has several columns of one measure."""


class Measure(Node):
    """Column of the group's table."""

    ours: str
    """Key in `soda_dist.report.paper_columns.OURS`."""
    sources: Sources | None = None
    """Number of source views that novel views are sampled from."""
    paper: tuple[PaperColumn, ...] = ()


class Variant(Node):
    """Row of the group's table: its differences from the base."""

    name: Annotated[str, Field(pattern=r"^[^|\n]*[A-Za-z0-9][^|\n]*$", max_length=60)]
    fields: Annotated[dict[str, Any], Field(default_factory=dict)]
    """Configuration field -> value."""
    paper: Annotated[dict[str, str], Field(default_factory=dict)]
    """Table of the paper -> its row of this variant."""

    @property
    def slug(self) -> str:
        """Name of the variant's folder."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


class Claim(Node):
    """Claim of the paper that a variant beats others in a measure."""

    measure: CountOrZero
    """Index in `measures`."""
    variant: str
    above: Annotated[tuple[str, ...], Field(min_length=1)]
    """Variants that it is claimed to beat."""
    their_measure: CountOrZero | None = None
    """Index of the measure of those variants; None = the same measure."""
    equal: bool = False
    """Claim only that they do not beat it."""


class Rendered(Node):
    """Data that the group renders: `jobs/prepare_data.py KIND` with these options."""

    kind: str
    options: Annotated[dict[str, int | float | str | bool], Field(default_factory=dict)]


class Ablation(Node):
    """A group of ablations."""

    title: str
    data: Rendered
    preset: str
    fields: Annotated[dict[str, Any], Field(default_factory=dict)]
    """Fields that make the preset small; ignored if `--preset` names another one."""
    seeds: Annotated[tuple[CountOrZero, ...], Field(min_length=1)] = (0, 1, 2)
    concurrent: Count = 2
    """Concurrent runs, of the small setting."""
    measures: Annotated[tuple[Measure, ...], Field(min_length=1)]
    variants: Annotated[tuple[Variant, ...], Field(min_length=1)]
    claims: tuple[Claim, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> "Ablation":
        slugs = [variant.slug for variant in self.variants]
        names = [variant.name for variant in self.variants]
        for at, slug in enumerate(slugs):
            if slug in slugs[:at]:
                allowed = "names that differ in letters or digits"
                raise ProblemError(Problem("variants", f"{names[at]} twice", allowed, "rename one of them"))
        if len(set(self.seeds)) < len(self.seeds):
            got = ", ".join(map(str, self.seeds))
            raise ProblemError(Problem("seeds", got, "each seed once", "remove the duplicates"))
        for claim in self.claims:
            for name in (claim.variant, *claim.above):
                if name not in names:
                    raise ProblemError(Problem("claims", name, ", ".join(names), "name a variant"))
            for number in (claim.measure, claim.their_measure or 0):
                if number >= len(self.measures):
                    allowed = f"0..{len(self.measures) - 1}"
                    raise ProblemError(Problem("claims", f"measure {number}", allowed, "count from 0"))
        return self

    def config_of(self, variant: Variant, seed: int, base: RunConfig) -> RunConfig:
        """Apply a variant and a seed to `base`; raise `UserError` as `load_config` does."""
        return with_fields(base, {"seed": seed, **variant.fields})

    def base(self, preset: str | None, overrides: Sequence[str]) -> RunConfig:
        """Load the base of the variants: the small setting, or `preset`, with overrides `a.b=value`."""
        if preset is not None:
            return load_config(preset, overrides)
        return load_config(
            self.preset, [*(f"{path}={as_yaml(value)}" for path, value in self.fields.items()), *overrides]
        )


def group_names() -> list[str]:
    return sorted(entry.name.removesuffix(".yaml") for entry in GROUPS.iterdir() if entry.name.endswith(".yaml"))


def load_group(name: str, instead: Mapping[str, str | None] | None = None) -> Ablation:
    """Load a shipped group or a YAML file; `instead` replaces its `seeds` and `concurrent` by text, unless None."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else GROUPS / f"{name}.yaml"
    if not path.is_file():
        raise UserError("--group", name, f"{', '.join(group_names())}, or a .yaml file", "choose one of them")
    tree = read_yaml(Path(str(path)), name)
    if not isinstance(tree, dict):
        raise UserError(name, type(tree).__name__, "a mapping", "start from a shipped group")
    for field, text in (instead or {}).items():
        if text is not None:
            tree[field] = _numbers(field, text) if field == "seeds" else _numbers(field, text)[0]
    return validate(Ablation, tree)


def _numbers(field: str, text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise UserError(f"--{field}", text, "comma-separated numbers" if field == "seeds" else "a number", "correct it")
    return tuple(map(int, text.split(",")))
