"""The tool that judges the suite: the faults it plants, where it finds them again, its verdicts on tests."""

import ast
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from . import judge, mutants
from .copies import Copy
from .faults import faults, statements, with_fault
from .mutants import Area, Mutant, Tree
from .records import Record

CODE = '''
"""A module."""

LIMIT = 3  # outside a function: left alone


def scale(values: "list[float]", factor: float = 2.0) -> "list[float]":
    """Values times a factor."""
    assert factor > 0
    if not values or len(values) <= 1:
        raise ValueError(f"got {len(values) + 1} values")
    say(f"scaling by {factor}", 7)
    total: "int" = sum(values[1:LIMIT])
    values.sort()
    return [min(value * factor, total - 1) for value in values if value is not None]


class Sum:
    def of(self, x):
        return divmod(x, 2)

    def ready(self):
        return True
'''
EXPECTED = {
    ("and, or", "(not values and len(values) <= 1)"),
    ("not dropped", "(values)"),
    ("comparison", "(len(values) > 1)"),
    ("boundary", "(len(values) < 1)"),
    ("constant", "2"),
    ("deleted", "pass"),  # twice: the raise and the sort
    ("slice", "2"),
    ("slice", "(LIMIT + 1)"),
    ("min and max", "max"),
    ("times and over", "(value / factor)"),
    ("plus and minus", "(total + 1)"),
    ("swapped", "min(total - 1, value * factor)"),
    ("comparison", "(value is None)"),
    ("swapped", "divmod(2, x)"),
    ("constant", "3"),
    ("return", "False"),
}


def _planted(code: str) -> list[tuple[str, str, str]]:
    """(kind, what the fault writes, the file with it)."""
    found = [fault for statement in statements(ast.parse(code)) for fault in faults(statement)]
    return [(fault.kind, fault.new, with_fault(code, fault)) for fault in found]


def test_faults_are_those_of_executable_code() -> None:
    planted = _planted(CODE)
    expected = EXPECTED - {("swapped", "min(total - 1, value * factor)")}  # the order of a minimum changes nothing
    assert {(kind, new) for kind, new, _ in planted} == expected
    assert [kind for kind, _, _ in planted].count("deleted") == 2


def test_every_fault_changes_one_place_and_leaves_python() -> None:
    lines = CODE.splitlines()
    for kind, new, text in _planted(CODE):
        assert ast.dump(ast.parse(text)) != ast.dump(ast.parse(CODE)), (kind, new)
        changed = [number for number, line in enumerate(text.splitlines()) if line != lines[number]]
        assert len(changed) == 1, (kind, new)


def test_a_fault_of_broken_lines_and_wide_characters_is_put_where_it_belongs() -> None:
    code = 'def f(a, b):\n    é = "é" and (\n        a\n        + b\n    )\n    return é\n'
    texts = [text for kind, _, text in _planted(code) if kind == "plus and minus"]
    assert texts == ['def f(a, b):\n    é = "é" and (\n        (a - b)\n    )\n    return é\n']


def _tree(root: Path, files: dict[str, str]) -> Tree:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return Tree(root, "pkg")


def _of_kind(tree: Tree, kind: str) -> Mutant:
    record = Record({"t": {"outcome": "passed", "fixtures": [], "wall": 1, "cpu": 1}}, {}, {"pkg/a.py": {}})
    record.lines["pkg/a.py"] = {str(line): ["test t"] for line in range(1, 30)}
    draws = (mutants.choose(tree, [Area("all", 9, ["pkg/*.py"])], record, set(), seed) for seed in range(99))
    return next(mutant for drawn in draws for mutant in drawn if mutant.kind == kind)


BODY = "    if x < 1:\n        return x\n    y = x * 3\n    z = x * 3\n    return max(y, z) - 1\n"


@pytest.mark.parametrize(
    ("files", "found_by"),
    [
        ({"pkg/a.py": f"import os\n\n\ndef f(x):\n{BODY}"}, "statement, same file and function"),
        ({"pkg/b.py": f"def f(x):\n{BODY}", "pkg/c.py": "def g(x):\n    return max(y, z) - 1\n"}, "same function"),
        ({"pkg/b.py": f"class A:\n    def _f(self, x):\n{BODY.replace('    ', '        ')}"}, "same last name"),
        ({"pkg/b.py": "def h(x):\n    return (\n        max(y, z)\n        - 1\n    )\n"}, "statement, anywhere"),
        ({"pkg/b.py": "def h(x):\n    w = [max(y, z) - 1]\n    return w\n"}, "expression, anywhere"),
        ({"pkg/b.py": "def h(x):\n    return max(y, z) - 2\n"}, None),
        ({f"pkg/{name}.py": f"def {name}(x):\n{BODY}" for name in "bc"}, None),
    ],
)
def test_a_mutant_is_found_where_its_text_went(tmp_path: Path, files: dict[str, str], found_by: str | None) -> None:
    mutant = _of_kind(_tree(tmp_path / "before", {"pkg/a.py": f"def f(x):\n{BODY}"}), "plus and minus")
    assert (mutant.expression, mutant.becomes, mutant.line) == ("max(y, z) - 1", "(max(y, z) + 1)", 6)
    place = mutants.locate(mutant, _tree(tmp_path / "after", files), {}, {})
    if found_by is None:
        assert place is None
    else:
        assert place is not None
        assert found_by in place.found_by
        assert place.text.count("(max(y, z) + 1)") == 1
        assert "(max(y, z) + 1)" in "\n".join(place.text.splitlines()[place.statement.start - 1 : place.statement.stop])


def test_of_equal_statements_the_same_one_is_meant(tmp_path: Path) -> None:
    code = "def f(x):\n    x += 1\n    print(x)\n    x += 1\n    return x\n"
    tree = _tree(tmp_path, {"pkg/a.py": code})
    for occurrence, expected in enumerate(("x -= 1\n    print(x)\n    x += 1", "x += 1\n    print(x)\n    x -= 1")):
        mutant = replace(_of_kind(tree, "plus and minus"), occurrence=occurrence)
        place = mutants.locate(mutant, tree, {}, {})
        assert place is not None
        assert expected in place.text


def test_a_place_given_by_hand_must_be_the_only_one(tmp_path: Path) -> None:
    tree = _tree(tmp_path, {"pkg/a.py": f"def f(x):\n{BODY}"})
    mutant = _of_kind(tree, "min and max")
    given = {"file": "pkg/a.py", "old": "max(y, z)", "new": "min(y, z)"}
    place = mutants.locate(mutant, tree, {}, {mutant.id: given})
    assert place is not None
    assert (place.lines, place.text.count("min(y, z)")) == (range(6, 7), 1)
    with pytest.raises(ValueError, match="occurs 2 times"):
        mutants.locate(mutant, tree, {}, {mutant.id: {**given, "old": "x * 3"}})


def test_a_shared_fixtures_lines_count_for_all_its_tests_and_the_cheap_come_first() -> None:
    def about(wall: float, *fixtures: str, outcome: str = "passed") -> dict:
        return {"outcome": outcome, "fixtures": list(fixtures), "wall": wall, "cpu": wall}

    tests = {"a::1": about(9), "b::1": about(2, "F"), "b::2": about(1, "F"), "b::3": about(0, "F", outcome="failed")}
    record = Record(tests, {"F": {"wall": 4, "cpu": 3}}, {"x.py": {"1": ["test a::1"], "2": ["fixture F"]}})
    assert record.covering("x.py", range(1, 3)) == ["b::2", "b::1", "a::1"]
    assert record.covering("x.py", [1]) == ["a::1"]
    assert record.covering("x.py", [3]) == []
    assert record.seconds(["b::1", "b::2"]) == {"wall": 7, "cpu": 6}


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    """A commit of a function, a test that notices its faults, one that does not, and one that never ends."""
    files = {
        "pkg/__init__.py": "",
        "pkg/a.py": "def f(x):\n    y = x * 3\n    while y > 9:\n        y -= 1\n    return y\n",
        "tests/__init__.py": "",
        "tests/test_a.py": "from pkg.a import f\n\n\ndef test_exact():\n    assert f(2) == 6\n\n\n"
        "def test_type():\n    assert isinstance(f(2), int)\n\n\ndef test_large():\n    assert f(9)\n",
    }
    _tree(tmp_path / "repository", files)
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x"]):
        subprocess.run(["git", *command], cwd=tmp_path / "repository", check=True, timeout=60)
    copy = Copy(tmp_path / "scratch", "pkg", sys.executable, 0)
    copy.scratch.mkdir()
    copy.unpack(tmp_path / "repository", "HEAD")
    return copy


def _judged(copy: Copy, mutant: Mutant, tests: list[str]) -> dict:
    passed = {"outcome": "passed", "fixtures": [], "wall": 0, "cpu": 0}
    record = Record({f"tests/test_a.py::{test}": passed for test in tests})
    record.lines = {"pkg/a.py": {str(line): [f"test {test}" for test in record.tests] for line in range(1, 6)}}
    results = copy.scratch / "results.jsonl"
    judge.judge([mutant], judge.Bench(copy, record, {}, {}, {}), results, 1, lambda _: None)
    return judge.read_results(results)[-1]


def test_a_mutant_is_killed_by_a_test_that_notices_and_survives_one_that_does_not(copy: Copy) -> None:
    tree = Tree(copy.tree, "pkg")
    mutant = _of_kind(tree, "times and over")
    before = {path: path.read_bytes() for path in copy.tree.rglob("*.py")}
    lax = _judged(copy, replace(mutant, statement="y = x * 3", becomes="(x / 3)"), ["test_large"])
    strict = _judged(copy, replace(mutant, id="m2"), ["test_large", "test_exact"])
    assert (lax["verdict"], strict["verdict"]) == ("survived", "killed")
    assert strict["by"] == "tests/test_a.py::test_exact"
    assert "assert" in strict["message"]
    assert {path: path.read_bytes() for path in copy.tree.rglob("*.py")} == before
    assert _judged(copy, replace(mutant, id="m2"), ["test_large"]) == strict, "a verdict that is there stays"


def test_a_mutant_that_never_ends_is_killed_by_its_limit(copy: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.mutation.copies.LIMITED", 'ulimit -S -t 4 && exec "$@"')
    endless = _of_kind(Tree(copy.tree, "pkg"), "plus and minus")
    assert endless.statement == "y -= 1"
    assert _judged(copy, endless, ["test_large"])["by"] == "limit of cpu time"


def test_what_was_killed_before_and_lives_after_is_told(tmp_path: Path) -> None:
    mutant = _of_kind(_tree(tmp_path, {"pkg/a.py": f"def f(x):\n{BODY}"}), "comparison")
    found = [replace(mutant, id=name) for name in ("kept", "lost", "gone", "never")]
    killed: list[dict] = [
        {"id": name, "area": "a", "verdict": "killed", "by": "t"} for name in ("kept", "lost", "gone")
    ]
    before = [*killed, {"id": "never", "area": "a", "verdict": "survived"}]
    after = [killed[0], {"id": "lost", "area": "a", "verdict": "survived", "file": "pkg/b.py", "line": 7}]
    text, lost = judge.compare(before, after, found)
    assert (lost, text.splitlines()[0]) == (2, "3 mutants killed before; 1 of them killed after")
    assert "| lost | pkg/a.py:2 f | `x < 1` -> `(x >= 1)` | t | survived | pkg/b.py:7 |" in text
    assert "| gone | pkg/a.py:2 f | `x < 1` -> `(x >= 1)` | t | not run |  |" in text
    assert judge.table(before).splitlines()[2] == "| a | 3 | 1 | 4 |"
