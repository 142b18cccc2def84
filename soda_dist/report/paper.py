"""Validated result tables of the paper, read from `paper.yaml`."""

from importlib.resources import files
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, model_validator

from soda_dist.errors import UserError


class _Node(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Metric(_Node):
    """A metric: its unit and the direction of improvement."""

    name: str
    unit: str
    better: Literal["higher", "lower"]
    remark: str | None = None
    """Why figures cannot be compared with the paper's, whatever the run."""
    network: str | None = None
    """Network that the paper's figures are taken to be measured by."""


class DataSet(_Node):
    """A data set of the paper and its settings (D.2, table 10)."""

    name: str
    kinds: tuple[str, ...]
    """Matching values of `kind` in the manifest of prepared data."""
    source: int
    """Side of the encoder's input in pixels."""
    target: int
    """Side of the denoiser's output in pixels."""
    batch: int
    guidance: float
    test: str
    """Name of the evaluation split."""
    images: int | None = None
    own_split: bool = False
    """Whether the paper made its own 80/10/10 splits, since none are published."""
    remark: str | None = None


class Sampler(_Node):
    """Sampling settings of the paper (appendix C)."""

    method: str
    steps: tuple[int, int]
    """Minimum and maximum number of strided steps."""


class Column(_Node):
    """A column of a table and the source of our figure for it."""

    metric: str
    ours: str
    """Key in `soda_dist.report.paper_columns.OURS`."""
    name: str | None = None
    """Heading instead of the metric's name, if a table has several columns of one metric."""
    sources: int | None = None
    """Number of source views that novel views are sampled from."""
    expects: dict[str, Any] = {}
    """Configuration fields of the paper's training; deviations get a footnote."""
    needs: dict[str, Any] = {}
    """Configuration fields that a run must match to have a figure in this column."""


class PaperRow(_Node):
    """A row of a table."""

    name: str
    values: tuple[float | None, ...]
    """One value per column; None for a dash in the paper."""
    soda: Literal["default", "variant"] | None = None
    """`default` for SODA itself, `variant` for an ablation of it, None for other methods."""
    starred: tuple[int, ...] = ()
    """Indices of the columns whose figure the paper marks."""


class Block(_Node):
    """Rows of a table on one data set."""

    data: str
    encoder: str
    """`encoder.arch` of the paper's SODA."""
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
    """Contents of `paper.yaml`."""

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
                    raise ValueError(f"unknown metric {column.metric}")
        for number, table in self.tables.items():
            for block in table.blocks:
                if block.data not in self.data_sets or block.columns not in self.columns:
                    raise ValueError(f"table {number}: unknown data set {block.data} or columns {block.columns}")
                for row in block.rows:
                    if len(row.values) != len(self.columns[block.columns]):
                        raise ValueError(f"table {number}: {row.name} has {len(row.values)} values")
        return self

    def table(self, number: str) -> Table:
        """Return a table by its number in the paper; raise `UserError` if unknown or without results."""
        if number in self.tables:
            return self.tables[number]
        contents = self.without_results.get(number)
        got = f"{number}, which contains {contents} and no results" if contents else number
        raise UserError("--table", got, ", ".join(self.tables), "choose one of them")


def read_paper() -> Paper:
    """Read and validate `paper.yaml`."""
    text = files("soda_dist.report").joinpath("paper.yaml").read_text(encoding="utf-8")
    return Paper.model_validate(yaml.safe_load(text))
