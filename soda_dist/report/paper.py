"""The paper's tables of results as data: `paper.yaml`, checked when it is read."""

from importlib.resources import files
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, model_validator

from soda_dist.errors import UserError


class _Node(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Metric(_Node):
    """A measure: its unit, and which way is better."""

    name: str
    unit: str
    better: Literal["higher", "lower"]


class DataSet(_Node):
    """What the paper trained and measured on (D.2, table 10)."""

    name: str
    kinds: tuple[str, ...]
    """`kind` of the manifests of prepared data that are this set."""
    source: int
    """Side of the encoder's input, px."""
    target: int
    """Side of the denoiser's output, px."""
    batch: int
    guidance: float
    test: str
    """Name of the split that is measured."""
    images: int | None = None
    own_split: bool = False
    """Whether the paper cut the splits itself, 80/10/10, since none are published."""
    remark: str | None = None


class Sampler(_Node):
    """How the paper samples (appendix C)."""

    method: str
    steps: tuple[int, int]
    """Fewest and most strided steps."""


class Column(_Node):
    """A measure in a table, and where ours is."""

    metric: str
    ours: str
    """A row of `soda_dist.report.paper_columns.OURS`."""
    name: str | None = None
    """In place of the metric's, where a table has several columns of one metric."""
    sources: int | None = None
    """Source views that novel views are drawn from."""
    expects: dict[str, Any] = {}
    """Fields of the configuration that the paper's figure was trained with."""
    needs: dict[str, Any] = {}
    """Fields without which a run has no figure here."""


class PaperRow(_Node):
    """A row as the paper has it."""

    name: str
    values: tuple[float | None, ...]
    """In the order of the columns; none where the paper has a dash."""
    soda: Literal["default", "variant"] | None = None
    """The paper's own model, or an ablation of it."""
    starred: tuple[int, ...] = ()
    """Columns, from 0, whose figure the paper marks."""


class Block(_Node):
    """The rows of a table that are of one data set."""

    data: str
    encoder: str
    """`encoder.arch` of SODA's own model."""
    columns: str
    rows: tuple[PaperRow, ...]
    title: str | None = None


class Table(_Node):
    """A table of the paper."""

    caption: str
    section: str
    blocks: tuple[Block, ...]
    notes: tuple[str, ...] = ()


class Paper(_Node):
    """All of `paper.yaml`."""

    training: str
    sampling: Sampler
    without_results: dict[str, str]
    metrics: dict[str, Metric]
    data_sets: dict[str, DataSet]
    columns: dict[str, tuple[Column, ...]]
    tables: dict[str, Table]

    @model_validator(mode="after")
    def _complete(self) -> "Paper":
        for columns in self.columns.values():
            for column in columns:
                if column.metric not in self.metrics:
                    raise ValueError(f"no metric {column.metric}")
        for number, table in self.tables.items():
            for block in table.blocks:
                if block.data not in self.data_sets or block.columns not in self.columns:
                    raise ValueError(f"table {number}: no data set {block.data}, or no columns {block.columns}")
                for row in block.rows:
                    if len(row.values) != len(self.columns[block.columns]):
                        raise ValueError(f"table {number}: {row.name} has {len(row.values)} values")
        return self

    def table(self, number: str) -> Table:
        """The table that the paper calls `number`; a `UserError` for one without results."""
        if number in self.tables:
            return self.tables[number]
        holds = self.without_results.get(number)
        got = f"{number}, which holds {holds} and no results" if holds else number
        raise UserError("--table", got, ", ".join(self.tables), "choose one of them")


def read_paper() -> Paper:
    """What `paper.yaml` holds."""
    text = files("soda_dist.report").joinpath("paper.yaml").read_text(encoding="utf-8")
    return Paper.model_validate(yaml.safe_load(text))
