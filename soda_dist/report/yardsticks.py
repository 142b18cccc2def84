"""Published figures of others on data sets that the paper does not use, read from `yardsticks.yaml`."""

from importlib.resources import files

import yaml
from pydantic import BaseModel, ConfigDict

from soda_dist.report.paper import Column

COLUMNS = (
    Column(metric="top1", ours="probe.top1", name="Top-1, linear probe"),
    Column(metric="top1", ours="knn.top1", name="Top-1, nearest neighbours"),
)
"""Columns of the tables, in the order of `Row.values`."""


class _Node(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Row(_Node):
    """Figures of one publication."""

    name: str
    probe: float | None
    """Top-1 in %, as is `knn`; None = not published."""
    knn: float | None
    note: str
    """Where it is published, and what sets it apart."""

    @property
    def values(self) -> tuple[float | None, float | None]:
        return self.probe, self.knn


class Yardstick(_Node):
    """A data set and its published figures."""

    name: str
    kinds: tuple[str, ...]
    """Matching values of `kind` in the manifest of prepared data."""
    rows: tuple[Row, ...]


def read_yardsticks() -> tuple[Yardstick, ...]:
    """Read and validate `yardsticks.yaml`."""
    text = files("soda_dist.report").joinpath("yardsticks.yaml").read_text(encoding="utf-8")
    return tuple(Yardstick.model_validate(each) for each in yaml.safe_load(text))
