"""Binary attributes of files: in an index as bytes, a value each, in rows as columns."""

from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from soda_dist.data.formats.file_trees import Tree
from soda_dist.data.shards import COMMON_COLUMNS
from soda_dist.data.source import Row

TAKEN = ("label", *(name for name, _ in COMMON_COLUMNS))
"""Columns that are no attributes."""
VALUES, PROBLEM = "attributes", "attribute_problem"


def can_be_columns(names: Sequence[str]) -> bool:
    """Whether attributes of these names can be columns beside one another."""
    return len({*names, *TAKEN}) == len(names) + len(TAKEN)


def attribute_values(
    rows: Sequence[Sequence[str] | None], count: int, meaning: Mapping[str, int]
) -> dict[str, pa.Array]:
    """The columns of an index.

    Args:
        rows: what the publishers wrote of each file, in the order of attributes; None: nothing.
        count: of attributes.
        meaning: of each text that may be written.
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
    """The rows of such an index, with a column for each attribute, and these others."""
    for row in tree.rows(index, [*columns, VALUES, PROBLEM]):
        kept = {name: row.columns[name] for name in columns}
        problem = row.columns[PROBLEM]
        if problem:
            yield Row(row.name, b"", kept, problem)
        else:
            yield row._replace(columns={**kept, **dict(zip(names, row.columns[VALUES], strict=True))})
