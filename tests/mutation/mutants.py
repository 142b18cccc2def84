"""Choose mutants, keep them as JSON, and find each one's place in another tree."""

import ast
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from .faults import Fault, Statement, faults, statements, with_fault
from .records import Record

WEIGHTS = {
    "comparison": 3,
    "boundary": 2,
    "plus and minus": 3,
    "times and over": 3,
    "constant": 3,
    "and, or": 2,
    "not dropped": 1,
    "slice": 2,
    "return": 1,
    "min and max": 2,
    "deleted": 1,
    "swapped": 1,
}
PER_FILE, PER_FUNCTION = 4, 2
SHORT = 12  # a shorter text says too little to be found by itself
LONG = 160  # a longer statement passes things on rather than computes, and is the first to be written anew


@dataclass(frozen=True)
class Mutant:
    """A fault, addressed by its statement's text within its function.

    `occurrence` of `occurrences` counts the function's statements with the same text; `number` is the fault's place
    in `faults(statement)`. `line`, `old` and `new` are for the reader.
    """

    id: str
    area: str
    kind: str
    file: str
    function: str
    line: int
    statement: str
    occurrence: int
    occurrences: int
    number: int
    expression: str
    becomes: str
    old: str
    new: str


@dataclass(frozen=True)
class Place:
    """A file and its text with the fault, the fault's lines and its statement's, and the rule by which it was found."""

    file: str
    text: str
    lines: range
    statement: range
    found_by: str

    def tests(self, record: Record) -> list[str]:
        """Tests that run the fault's lines; of a line that no trace tells apart, those of the statement."""
        return record.covering(self.file, self.lines) or record.covering(self.file, self.statement)


@dataclass(frozen=True)
class Area:
    """`count` mutants of the files that the patterns match."""

    name: str
    count: int
    patterns: list[str]

    @classmethod
    def parse(cls, text: str) -> "Area":
        """`NAME=COUNT:PATTERN,PATTERN`."""
        name, _, rest = text.partition("=")
        count, _, patterns = rest.partition(":")
        return cls(name, int(count), patterns.split(","))


class Tree:
    """The statements of a tree's package, by their text."""

    def __init__(self, root: Path, package: str) -> None:
        self.root = root
        self.by_text: dict[str, list[tuple[str, Statement]]] = {}
        self.by_file: dict[str, list[Statement]] = {}
        for path in sorted((root / package).rglob("*.py")):
            name = str(path.relative_to(root))
            self.by_file[name] = list(statements(ast.parse(path.read_text())))
            for statement in self.by_file[name]:
                self.by_text.setdefault(statement.text, []).append((name, statement))

    def source(self, file: str) -> str:
        return (self.root / file).read_text()


def choose(tree: Tree, areas: list[Area], record: Record, unseen: set[str], seed: int) -> list[Mutant]:
    """Draw mutants of each area on lines that passing tests run, or in a file of `unseen`, which only actors run."""
    chosen: list[Mutant] = []
    for area in areas:
        files = sorted({str(p.relative_to(tree.root)) for glob in area.patterns for p in tree.root.glob(glob)})
        candidates = [
            (file, statement, fault)
            for file in files
            for statement in tree.by_file[file]
            if len(statement.text) <= LONG
            for fault in faults(statement)
            if record.covering(file, _lines(statement, fault))
            or (file in unseen and not record.covering(file, statement.lines))
        ]
        drawn = _drawn(candidates, area.count, random.Random(f"{seed} {area.name}"))
        for number, (file, statement, fault) in enumerate(drawn, 1):
            chosen.append(_mutant(tree, area.name, file, statement, fault, f"{area.name}-{number:02d}"))
    return chosen


def _drawn(candidates: list, count: int, generator: random.Random) -> Iterator[tuple[str, Statement, Fault]]:
    """At most one fault a statement, PER_FUNCTION a function and PER_FILE a file, kinds by their weights."""
    of_kind: dict[str, list] = {}
    for candidate in candidates:
        of_kind.setdefault(candidate[2].kind, []).append(candidate)
    taken: Counter = Counter()
    drawn = 0
    while drawn < count and of_kind:
        kinds = sorted(of_kind)
        kind = generator.choices(kinds, [WEIGHTS[kind] for kind in kinds])[0]
        file, statement, fault = of_kind[kind].pop(generator.randrange(len(of_kind[kind])))
        if not of_kind[kind]:
            del of_kind[kind]
        keys = {(file,): PER_FILE, (file, statement.function): PER_FUNCTION, (file, id(statement)): 1}
        if all(taken[key] < most for key, most in keys.items()):
            taken.update(keys.keys())
            drawn += 1
            yield file, statement, fault


def _lines(statement: Statement, fault: Fault) -> range:
    first, last = fault.node.lineno, fault.node.end_lineno  # type: ignore[attr-defined]
    return statement.lines if fault.node is statement.node else range(first, last + 1)


def _mutant(tree: Tree, area: str, file: str, statement: Statement, fault: Fault, name: str) -> Mutant:
    same = [s for s in tree.by_file[file] if (s.function, s.text) == (statement.function, statement.text)]
    source = tree.source(file)
    old, new = source.splitlines(), with_fault(source, fault).splitlines()
    first, after = statement.lines.start - 1, len(old) - statement.lines.stop + 1
    return Mutant(
        id=name,
        area=area,
        kind=fault.kind,
        file=file,
        function=statement.function,
        line=statement.node.lineno,
        statement=statement.text,
        occurrence=same.index(statement),
        occurrences=len(same),
        number=[(id(f.node), f.new) for f in faults(statement)].index((id(fault.node), fault.new)),
        expression=ast.unparse(fault.node),
        becomes=fault.new,
        old="\n".join(old[first : len(old) - after]),
        new="\n".join(new[first : len(new) - after]),
    )


def write(mutants: list[Mutant], path: Path) -> None:
    path.write_text(json.dumps([asdict(mutant) for mutant in mutants], indent=1) + "\n")


def read(path: Path) -> list[Mutant]:
    return [Mutant(**entry) for entry in json.loads(path.read_text())]


def locate(mutant: Mutant, tree: Tree, renames: dict[str, str], given: dict[str, dict[str, str]]) -> Place | None:
    """Find the mutant's place: as `given` for its id, or by its statement's text, or by the changed expression's.

    `given` holds {"file", "old", "new"}, where `old` occurs once in the file. The text is looked for in the function
    of the same file (or of what `renames` makes of it), in a function of the same full name, of the same last name,
    and in the whole package; a place counts only if it is the only one.
    """
    if mutant.id in given:
        return _given(tree, given[mutant.id])
    same_text = tree.by_text.get(mutant.statement, [])
    for rule, groups in _nearest(mutant, same_text, renames):
        if rule == "anywhere" and len(mutant.statement) < SHORT:
            continue
        if len(groups) == 1 and len(groups[0]) in (1, mutant.occurrences):
            file, statement = groups[0][mutant.occurrence if len(groups[0]) > 1 else 0]
            return _place(tree, file, statement, faults(statement)[mutant.number], f"statement, {rule}")
    if len(mutant.expression) < SHORT or mutant.kind == "deleted":
        return None
    wanted = (mutant.kind, mutant.expression, mutant.becomes)
    same_change = [
        (file, statement)
        for file, found in tree.by_file.items()
        for statement in found
        if [_change(fault) for fault in faults(statement)].count(wanted) == 1
    ]
    for rule, groups in _nearest(mutant, same_change, renames):
        if len(groups) == 1 and len(groups[0]) == 1:
            file, statement = groups[0][0]
            fault = next(fault for fault in faults(statement) if _change(fault) == wanted)
            return _place(tree, file, statement, fault, f"expression, {rule}")
    return None


def _change(fault: Fault) -> tuple[str, str, str]:
    return fault.kind, ast.unparse(fault.node), fault.new


Found = tuple[str, Statement]


def _nearest(mutant: Mutant, found: list[Found], renames: dict[str, str]) -> Iterator[tuple[str, list[list[Found]]]]:
    """From near to far: the rule, and what it keeps of `found`, grouped by function."""
    last_name = mutant.function.rpartition(".")[2]
    files = {mutant.file, renames.get(mutant.file, mutant.file)}
    rules: dict[str, Callable[[str, str], bool]] = {
        "same file and function": lambda file, function: file in files and function == mutant.function,
        "same function": lambda _, function: function == mutant.function,
        "same last name": lambda _, function: function.rpartition(".")[2].lstrip("_") == last_name.lstrip("_"),
        "anywhere": lambda *_: True,
    }
    for rule, keeps in rules.items():
        groups: dict[tuple[str, str], list[Found]] = {}
        for file, statement in found:
            if keeps(file, statement.function):
                groups.setdefault((file, statement.function), []).append((file, statement))
        yield rule, list(groups.values())


def _place(tree: Tree, file: str, statement: Statement, fault: Fault, found_by: str) -> Place:
    return Place(file, with_fault(tree.source(file), fault), _lines(statement, fault), statement.lines, found_by)


def _given(tree: Tree, entry: dict[str, str]) -> Place:
    source = tree.source(entry["file"])
    if source.count(entry["old"]) != 1:
        raise ValueError(f"{entry['file']}: {entry['old']!r} occurs {source.count(entry['old'])} times; it must once")
    before = source.partition(entry["old"])[0].count("\n") + 1
    lines = range(before, before + entry["old"].count("\n") + 1)
    return Place(entry["file"], source.replace(entry["old"], entry["new"]), lines, lines, "given")
