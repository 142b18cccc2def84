"""Label columns of tables: whole numbers, texts, dictionaries and booleans as class numbers.

A null, an empty text and the number -1 (the convention of `datasets`) are no label; neither is a column that a file
lacks.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from soda_dist.data.formats.published_names import one_form

MAX_CLASSES = 100_000
BOOLEANS = ("false", "true")
UNKNOWN = -1
KINDS = "whole numbers, texts or booleans"


@dataclass(frozen=True)
class LabelColumn:
    """A column of labels.

    Attributes:
        name: in the shards.
        candidates: accepted names in the files.
        names: class names.
        numbers: class of each number in the files; None = texts, which are class names.
    """

    name: str
    candidates: tuple[str, ...]
    names: tuple[str, ...]
    numbers: tuple[int, ...] | None

    @classmethod
    def of_names(cls, name: str, candidates: tuple[str, ...], names: Iterable[str]) -> "LabelColumn":
        """Make a column of numbers with these names; names that differ in Unicode's form alone are one class."""
        forms = [one_form(each) for each in names]
        known = tuple(dict.fromkeys(forms))
        return cls(name, candidates, known, tuple(known.index(form) for form in forms))

    def encode(self, values: pa.ChunkedArray) -> tuple[list[int | None], list[str | None]]:
        """Return each row's class, None = no label or an unknown one, and the problem of unknown ones."""
        cells: Sequence[Any] = self.names if self.numbers is None else range(len(self.numbers))
        places = dict(zip(cells, range(len(self.names)) if self.numbers is None else self.numbers, strict=True))
        allowed = "a known class" if self.numbers is None else f"0..{len(places) - 1}"
        classes, problems = list[int | None](), list[str | None]()
        for value in plain(values).to_pylist():
            known = one_form(value).strip() if isinstance(value, str) else value
            found = None if lacks_label(known) else places.get(known)
            unknown = found is None and not lacks_label(known)
            classes.append(found)
            problems.append(f"{self.name} {str(value)[:40]}, not {allowed}" if unknown else None)
        return classes, problems


def lacks_label(value: Any) -> bool:
    """Whether a cell's value says that its row has no label."""
    return value in (None, "", UNKNOWN) or (isinstance(value, float) and math.isnan(value))


def plain(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Replace a dictionary's codes by its values."""
    return values.cast(values.type.value_type) if pa.types.is_dictionary(values.type) else values


def is_label_type(kind: pa.DataType) -> bool:
    """Whether a column of this type may hold labels."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return any(fits(kind) for fits in (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, is_text))


def is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def find_classes(name: str, values: set[Any]) -> "LabelColumn | str":
    """Make the column of these distinct values, or say why they are no classes."""
    found = {value for value in values if not lacks_label(value)}
    if not found:
        return "no value in any row"
    if all(isinstance(value, bool) for value in found):
        return LabelColumn.of_names(name, (name,), BOOLEANS)
    if all(isinstance(value, str) for value in found):
        names = sorted({one_form(text).strip() for text in found} - {""})
        fits = 0 < len(names) <= MAX_CLASSES
        return LabelColumn(name, (name,), tuple(names), None) if fits else f"{len(names):,} different texts"
    odd = next((value for value in found if isinstance(value, str) or value % 1), None)
    if odd is not None:
        return f"the value {odd}, no whole number"
    least, most = int(min(found)), int(max(found))
    if least < 0 or most >= MAX_CLASSES:
        return f"numbers {least}..{most}, outside 0..{MAX_CLASSES - 1}"
    return LabelColumn.of_names(name, (name,), map(str, range(most + 1)))
