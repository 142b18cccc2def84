"""A result as tables: every number of `eval/STEP/TASK.json`, whatever its keys, and what it was measured on."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from soda_dist.report.measures import MEASURES, Cell, cell, plain_text, title_of
from soda_dist.runs.results import ENCODERS

CIRCUMSTANCES = (
    "task", "step", "ema", "weights", "label", "kind", "classes", "majority", "split", "splits", "counts", "coverage",
    "unreadable", "untrained", "settings", "sampling", "inception", "lpips", "data", "seed", "seconds", "warning",
)  # fmt: skip
"""Keys of a result that say how it was measured."""
TOLD = ("metric", "value", "standard_error", "provenance")
"""Keys that are shown elsewhere: the headline, and where the result comes from."""
LAST = tuple((name,) for name in (*CIRCUMSTANCES, "kid_subset", "dimension", "images"))
"""First keys of a table's last columns."""
FOLDER = "folder"
"""Key of a table's column that only says where images lie."""
SILENT = ("estimates", "details", "counts")
"""Keys that only group others."""
MOST_NUMBERS = 10_000
"""Values shown of one result."""
WIDE, LONG = 14, 14
"""Columns and rows from which a table is folded."""
FEW = 3
"""Single values of one key that are listed; more make a table of one row."""

Path = tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Rows of alike values; a cell is None where a row has no such value."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell | None, ...]], ...]

    @property
    def folded(self) -> bool:
        return len(self.heads) > WIDE or len(self.rows) > LONG


@dataclass(frozen=True)
class ResultTables:
    """All of a result: single measures, tables, and the circumstances, each a title and its values."""

    measures: list[tuple[str, list[Cell]]] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    circumstances: list[tuple[str, list[Cell]]] = field(default_factory=list)
    too_large: bool = False


def result_tables(result: dict[str, Any]) -> ResultTables:
    """Arrange a result: collections of alike values as tables, the rest in lists."""
    if too_large(result):
        return ResultTables(too_large=True)
    found = ResultTables()
    headline = str(result.get("metric") or "value")
    if "value" in result:
        found.measures.append((title_of(headline), [cell(headline, result["value"], result.get("standard_error"))]))
    rest = {name: value for name, value in result.items() if name not in TOLD and not _repeats(result, name)}
    alike = _alike({name: value for name, value in rest.items() if name not in CIRCUMSTANCES})
    for name, value in rest.items():
        if name in CIRCUMSTANCES or isinstance(value, int | str | None) or _is_plain_list(value):
            found.circumstances.extend(_listed(title_of(name), name, value))
        elif name not in alike:
            _arrange(found, title_of(name), name, value)
        elif alike[name][0] == name:
            _add(found, _table(", ".join(map(title_of, alike[name])), {each: rest[each] for each in alike[name]}))
    return found


def flat(tree: Any, above: Path = ()) -> Iterator[tuple[Path, Cell]]:
    """Yield the path and the cell of every value below `tree`; an estimate is one cell."""
    if _is_estimate(tree):
        yield above, cell(above[-1] if above else "", tree.get("value"), tree.get("standard_error"))
    elif isinstance(tree, dict | list | tuple) and tree:
        for name, value in _children(tree):
            yield from flat(value, above if name in SILENT else (*above, name))
    elif above:
        yield above, cell(above[-1], tree)


def numbers(tree: Any) -> Iterator[float]:
    """Yield every number of a JSON tree, but for the provenance of a result."""
    if isinstance(tree, dict | list | tuple):
        for name, value in _children(tree):
            if name != "provenance":
                yield from numbers(value)
    elif isinstance(tree, int | float) and not isinstance(tree, bool):
        yield tree


def too_large(result: Any) -> bool:
    """Whether a result has more than MOST_NUMBERS numbers."""
    return next(islice(numbers(result), MOST_NUMBERS, None), None) is not None


def path_title(path: Path) -> str:
    """Write a path; a set of estimates that is named by its measure alone has the measure's title."""
    return " · ".join(map(title_of, path))


def _children(tree: Any) -> Iterator[tuple[str, Any]]:
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree, 1)
    return ((str(name), value) for name, value in pairs)


def _is_estimate(tree: Any) -> bool:
    return isinstance(tree, dict) and "value" in tree and set(tree) <= {"value", "standard_error"}


def _is_collection(tree: Any) -> bool:
    """Whether all children are containers, so that they make the rows of a table."""
    if not isinstance(tree, dict | list | tuple) or not tree or _is_estimate(tree):
        return False
    inner = [value for _, value in _children(tree)]
    return all(isinstance(value, dict | list | tuple) and not _is_estimate(value) for value in inner) and any(inner)


def _alike(tree: dict[str, Any]) -> dict[str, list[str]]:
    """Group the keys whose dicts have the same keys: they are rows of one table."""
    groups: dict[frozenset[str], list[str]] = {}
    for name, value in tree.items():
        if isinstance(value, dict) and value and not _is_estimate(value) and not _is_collection(value):
            groups.setdefault(frozenset(map(str, value)), []).append(name)
    return {name: names for names in groups.values() if len(names) > 1 for name in names}


def _rows(tree: Any, above: Path = ()) -> Iterator[tuple[str, dict[Path, Cell]]]:
    for name, value in _children(tree):
        if _is_collection(value) and not _is_record(value):
            yield from _rows(value, (*above, name))
        else:
            title = " · ".join(plain_text(ENCODERS.get(part, part).replace("_", " ")) for part in (*above, name))
            yield title, dict(flat(value))


def _is_plain_list(tree: Any) -> bool:
    return isinstance(tree, list | tuple) and not any(isinstance(each, dict | list | float) for each in tree)


def _repeats(result: dict[str, Any], name: str) -> bool:
    """Whether the headline shows the value already."""
    return name == result.get("metric") and result[name] == result.get("value")


def _is_record(tree: Any) -> bool:
    """Whether a dict's keys name its values, such as `psnr` or `estimates`, and not further rows."""
    return isinstance(tree, dict) and any(name in MEASURES or name in SILENT for name in tree)


def _table(title: str, tree: Any) -> Table:
    rows = list(_rows(tree))
    found = dict.fromkeys(path for _, cells in rows for path in cells if path[-1:] != (FOLDER,))
    paths = sorted(found, key=lambda path: path[:1] in LAST)
    shown = tuple((name, tuple(cells.get(path) for path in paths)) for name, cells in rows)
    return Table(title, tuple(map(path_title, paths)), shown)


def _add(found: ResultTables, table: Table) -> None:
    """Add a table unless an earlier one has the same cells."""
    if not any({cells for _, cells in table.rows} == {cells for _, cells in other.rows} for other in found.tables):
        found.tables.append(table)


def _arrange(found: ResultTables, title: str, name: str, value: Any) -> None:
    """Add a value to the measures, or to the tables if it holds many."""
    if _is_collection(value):
        _add(found, _table(title, value))
    elif isinstance(value, dict) and any(
        isinstance(each, dict | list) and not _is_estimate(each) for each in value.values()
    ):
        for key, each in value.items():
            _arrange(found, f"{title}: {title_of(str(key))}", str(key), each)
    elif isinstance(value, dict) and not _is_estimate(value) and len(value) > FEW:
        _add(found, _table(title, {title: value}))
    else:
        found.measures.extend(_listed(title, name, value))


def _listed(title: str, name: str, value: Any) -> list[tuple[str, list[Cell]]]:
    """List a value under its title, or those within it; a list of values stays together."""
    if isinstance(value, list | tuple) and not _is_collection(value):
        return [(title, [cell(name, each) for each in value] or [Cell("none")])]
    if isinstance(value, dict) and not _is_estimate(value):
        inner = [_listed(f"{title}: {title_of(str(key))}", str(key), each) for key, each in value.items()]
        return [line for lines in inner for line in lines] or [(title, [Cell("none")])]
    return [(title if path == (name,) else path_title(path), [found]) for path, found in flat(value, (name,))]
