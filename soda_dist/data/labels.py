"""What a probe that is trained along predicts (section E.1), and its labels row by row."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from soda_dist.config.sections import Train
from soda_dist.data.shards import Manifest
from soda_dist.data.views.addressed import Ints
from soda_dist.errors import UserError

ATTRIBUTES = "attributes"
"""The label that stands for all attribute columns of a data set together."""
FIELD = "train.online_probe_label"


@dataclass(frozen=True)
class ProbeLabels:
    """The columns that are predicted, and what they hold."""

    columns: tuple[str, ...]
    classes: int
    heads: int
    """0 for a class or a factor, else the number of attributes, each of two classes."""


@dataclass(frozen=True)
class ChosenLabel:
    """What a label's name stands for."""

    name: str
    kind: str
    """`class`, `factor` or `attribute`."""
    columns: tuple[str, ...]
    """One, or those of all attributes together."""
    classes: int


def choose_label(manifest: Manifest, wanted: str | None, *, field: str, remedy: str) -> ChosenLabel:
    """The label called `wanted` (none: the data set's main one), or all attributes together under ATTRIBUTES.

    Raises:
        UserError: there is none; of `field`, with `remedy`.
    """
    name = wanted or manifest.main_label
    attributes = tuple(column for column, found in manifest.labels.items() if found.kind == "attribute")
    if name == ATTRIBUTES and attributes and name not in manifest.labels:
        return ChosenLabel(name, "attribute", attributes, 2)
    if name is None or name not in manifest.labels:
        allowed = ", ".join([*manifest.labels, *([ATTRIBUTES] if attributes else [])]) or "none: the data has no labels"
        raise UserError(field, name, allowed, remedy)
    return ChosenLabel(name, manifest.labels[name].kind, (name,), len(manifest.labels[name].names))


def probe_labels(manifest: Manifest, train: Train) -> ProbeLabels | None:
    """What the run's online probe predicts; None where it has none.

    Raises:
        UserError: the data set has no such label.
    """
    if not train.online_probe:
        return None
    remedy = "name a label column, or set train.online_probe=false"
    label = choose_label(manifest, train.online_probe_label, field=FIELD, remedy=remedy)
    return ProbeLabels(label.columns, label.classes, len(label.columns) if label.kind == "attribute" else 0)


def read_labels(table: pa.Table, columns: Sequence[str], manifest: Manifest) -> Ints:
    """int64 [rows, columns] of a table's label columns.

    Raises:
        UserError: a row without a label, or with one that the manifest does not name.
    """
    found = np.zeros((len(table), len(columns)), np.int64)
    for number, name in enumerate(columns):
        column = table.column(name)
        most = len(manifest.labels[name].names) - 1
        if column.null_count:
            got = f"{name}, which {column.null_count} of {len(table)} rows do not have"
            raise UserError(FIELD, got, "a label in every row", "choose another")
        found[:, number] = column.cast(pa.int64()).to_numpy()
        if len(table) and (found[:, number].min() < 0 or found[:, number].max() > most):
            got = f"{name} with values {found[:, number].min()}..{found[:, number].max()}"
            raise UserError(FIELD, got, f"0..{most}, as named in the manifest", "choose another")
    return found
