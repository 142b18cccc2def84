"""Binary attributes of images: one byte string per index row, one column each in rows."""

from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from soda_dist.data.formats.file_trees import Tree
from soda_dist.data.shards import COMMON_COLUMNS
from soda_dist.data.source import Row

RESERVED = ("label", *(name for name, _ in COMMON_COLUMNS))
"""Column names that attributes must not have."""
VALUES, PROBLEM = "attributes", "attribute_problem"
MAX_DIGITS = 9
"""Longest number accepted in a text file; Python refuses to parse thousands of digits."""


def is_number(text: str) -> bool:
    return text.isdecimal() and len(text) <= MAX_DIGITS


def valid_names(names: Sequence[str]) -> bool:
    """Whether these attribute names are unique and not reserved."""
    return len({*names, *RESERVED}) == len(names) + len(RESERVED)


def attribute_index(
    rows: Sequence[Sequence[str] | None], count: int, meaning: Mapping[str, int]
) -> dict[str, pa.Array]:
    """Encode attributes as index columns.

    Args:
        rows: the published values of each file, in attribute order; None = missing.
        count: number of attributes.
        meaning: the number for each published value.
    """
    values, problems = list[bytes](), list[str | None]()
    for row in rows:
        known = [meaning[text] for text in row or () if text in meaning]
        whole = row is not None and len(known) == len(row) == count
        values.append(bytes(known) if whole else b"")
        problems.append(None if whole else _problem(row, count, meaning))
    return {VALUES: pa.array(values, pa.binary()), PROBLEM: pa.array(problems, pa.string())}


def _problem(row: Sequence[str] | None, count: int, meaning: Mapping[str, int]) -> str:
    if row is None:
        return "no attributes"
    wrong = next((text for text in row if text not in meaning), None)
    return f"{len(row)} attributes, not {count}" if wrong is None else f"an attribute {wrong[:20]!r}"


def attribute_rows(tree: Tree, index: pa.Table, names: Sequence[str], columns: Sequence[str] = ()) -> Iterator[Row]:
    """Read the rows of such an index with a column per attribute, plus `columns`."""
    for row in tree.rows(index, [*columns, VALUES, PROBLEM]):
        others = {name: row.columns[name] for name in columns}
        if problem := row.columns[PROBLEM]:
            yield Row(row.name, b"", others, problem)
        else:
            yield row._replace(columns={**others, **dict(zip(names, row.columns[VALUES], strict=True))})
