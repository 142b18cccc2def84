"""Labels of the online probe (section E.1): which columns, and their values per row."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from soda_dist.config.sections import Train
from soda_dist.data.shards import ATTRIBUTES, Manifest
from soda_dist.data.views.addressed import Ints
from soda_dist.errors import UserError

FIELD = "train.online_probe_label"


@dataclass(frozen=True)
class ProbeLabels:
    """Columns that a probe predicts."""

    columns: tuple[str, ...]
    classes: int
    heads: int
    """0 for a class or factor; else the number of binary attributes."""


@dataclass(frozen=True)
class ChosenLabel:
    """Columns and kind selected by a label name."""

    name: str
    kind: str
    """`class`, `factor` or `attribute`."""
    columns: tuple[str, ...]
    """One column, or all attribute columns."""
    classes: int


def choose_label(manifest: Manifest, wanted: str | None, *, field: str, remedy: str) -> ChosenLabel:
    """Return the label `wanted` (None = the data set's main label); ATTRIBUTES selects all attributes.

    Raises:
        UserError: no such label; names `field` and `remedy`.
    """
    name = wanted or manifest.main_label
    attributes = tuple(column for column, found in manifest.labels.items() if found.kind == "attribute")
    if name == ATTRIBUTES and attributes and name not in manifest.labels:
        return ChosenLabel(name, "attribute", attributes, 2)
    if name is None or name not in manifest.labels:
        names = [*manifest.labels, *([ATTRIBUTES] if attributes else [])]
        allowed = ", ".join(names) or "none, since the data has no labels"
        raise UserError(field, name, allowed, remedy)
    return ChosenLabel(name, manifest.labels[name].kind, (name,), len(manifest.labels[name].names))


def probe_labels(manifest: Manifest, train: Train) -> ProbeLabels | None:
    """Return the columns that the run's online probe predicts, or None without a probe.

    Raises:
        UserError: the data set has no such label.
    """
    if not train.online_probe:
        return None
    remedy = "name a label column, or set train.online_probe=false"
    label = choose_label(manifest, train.online_probe_label, field=FIELD, remedy=remedy)
    return ProbeLabels(label.columns, label.classes, len(label.columns) if label.kind == "attribute" else 0)


def read_labels(table: pa.Table, columns: Sequence[str], manifest: Manifest) -> Ints:
    """Read a table's label columns: int64 [rows, columns].

    Raises:
        UserError: a label is missing, or outside the manifest's values.
    """
    found = np.zeros((len(table), len(columns)), np.int64)
    for number, name in enumerate(columns):
        column = table.column(name)
        most = len(manifest.labels[name].names) - 1
        if column.null_count:
            got = f"{name}, missing in {column.null_count} of {len(table)} rows"
            raise UserError(FIELD, got, "a label in every row", "choose another label")
        found[:, number] = column.cast(pa.int64()).to_numpy()
        if len(table) and (found[:, number].min() < 0 or found[:, number].max() > most):
            got = f"{name} with values {found[:, number].min()}..{found[:, number].max()}"
            raise UserError(FIELD, got, f"0..{most}, as in the manifest", "choose another label")
    return found
