"""Read which tests run a line, as `pytest_plugin` recorded it."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

Seconds = dict[str, float]


@dataclass
class Record:
    """Tests with their outcome and seconds, the seconds of shared fixtures, and for each line who runs it."""

    tests: dict[str, dict] = field(default_factory=dict)
    fixtures: dict[str, Seconds] = field(default_factory=dict)
    lines: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    @classmethod
    def read(cls, paths: Iterable[Path]) -> "Record":
        """All records as one; a test that is in several stands as in the last."""
        whole = cls()
        for path in paths:
            part = json.loads(path.read_text())
            whole.tests |= part["tests"]
            whole.fixtures |= part["fixtures"]
            for name, lines in part["lines"].items():
                known = whole.lines.setdefault(name, {})
                for line, contexts in lines.items():
                    known[line] = sorted({*known.get(line, []), *contexts})
        return whole

    def covering(self, file: str, lines: Iterable[int]) -> list[str]:
        """Passing tests that run one of the lines, in the order in which to try them."""
        known = self.lines.get(file, {})
        contexts = {context for line in lines for context in known.get(str(line), [])}
        fixtures = {context.removeprefix("fixture ") for context in contexts if context.startswith("fixture ")}
        return self.in_order(
            test
            for test, about in self.tests.items()
            if f"test {test}" in contexts or fixtures.intersection(about["fixtures"])
        )

    def of_files(self, files: Iterable[str]) -> list[str]:
        """Passing tests of the test files."""
        return self.in_order(test for file in files for test in self.tests if test.startswith(f"{file}::"))

    def in_order(self, tests: Iterable[str]) -> list[str]:
        """Those that passed: the cheapest file first, and within a file the cheapest test."""
        passed = [test for test in tests if self.tests[test]["outcome"] == "passed"]
        of_file: dict[str, list[str]] = {}
        for test in passed:
            of_file.setdefault(test.partition("::")[0], []).append(test)
        files = sorted(of_file.values(), key=lambda group: self.seconds(group)["wall"])
        return [test for group in files for test in sorted(group, key=lambda test: self.tests[test]["wall"])]

    def seconds(self, tests: Iterable[str]) -> Seconds:
        """The seconds that the tests took together, and the fixtures that they share."""
        abouts = [self.tests[test] for test in tests]
        shared = {name for about in abouts for name in about["fixtures"]}
        parts = [*abouts, *(self.fixtures[name] for name in shared if name in self.fixtures)]
        return {name: round(sum(part[name] for part in parts), 2) for name in ("wall", "cpu")}
