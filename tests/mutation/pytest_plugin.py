"""Pytest plugin, copied next to the code under test: record which test runs which line, or run chosen tests in order.

The environment says which: MUTATION_RECORD names the file of a new record, whose lines are traced under
MUTATION_PACKAGE; MUTATION_TESTS names a file of test ids, one a line, and MUTATION_REPORTS that of their outcomes.
"""

import json
import os
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

Contexts = dict[str, dict[str, list[str]]]


def pytest_configure(config: pytest.Config) -> None:
    if "MUTATION_RECORD" in os.environ:
        config.pluginmanager.register(Recorder(Path(os.environ["MUTATION_RECORD"])))
    if "MUTATION_TESTS" in os.environ:
        tests, reports = (Path(os.environ[name]) for name in ("MUTATION_TESTS", "MUTATION_REPORTS"))
        config.pluginmanager.register(Chosen(tests.read_text().splitlines(), reports))


class Seconds(NamedTuple):
    """Time on the clock, and of the CPU in this process and in those that it has waited for."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> "Seconds":
        times = os.times()
        return cls(time.monotonic(), sum(times[:4]))

    def __sub__(self, other: "Seconds") -> "Seconds":
        return Seconds(self.wall - other.wall, self.cpu - other.cpu)

    def plus(self, other: "Seconds") -> "Seconds":
        return Seconds(self.wall + other.wall, self.cpu + other.cpu)

    def shown(self) -> dict[str, float]:
        return {"wall": round(self.wall, 3), "cpu": round(self.cpu, 3)}


class Recorder:
    """Record every test's outcome and seconds, the fixtures it shares with others, and the lines that it runs.

    A shared fixture (of a module or of the session) is a context of its own: every test that uses it depends on its
    lines, though it runs them within the first test only.
    """

    def __init__(self, record: Path) -> None:
        import coverage

        self.record = record
        self.tests: dict[str, dict[str, Any]] = {}
        self.fixtures: dict[str, dict[str, float]] = {}
        self.stack = [""]
        self.shared = Seconds(0.0, 0.0)
        self.package = Path(os.environ["MUTATION_PACKAGE"]).resolve()
        data = str(record.with_suffix(".coverage"))
        self.coverage = coverage.Coverage(data_file=data, source=[str(self.package)], config_file=False)
        self.coverage.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        about: Any = item
        definitions = about._fixtureinfo.name2fixturedefs
        shared = {_key(found) for several in definitions.values() for found in several if found.scope != "function"}
        self.tests[item.nodeid] = {"outcome": "passed", "fixtures": sorted(shared)}
        start, self.shared = Seconds.now(), Seconds(0.0, 0.0)
        self._enter(f"test {item.nodeid}")
        try:
            return (yield)
        finally:
            self._leave()
            self.tests[item.nodeid] |= (Seconds.now() - start - self.shared).shown()

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Generator[None, object, object]:
        if fixturedef.scope == "function":
            return (yield)
        key, start, inner = _key(fixturedef), Seconds.now(), self.shared
        self._enter(f"fixture {key}")
        try:
            return (yield)
        finally:
            self._leave()
            self.shared = inner.plus(Seconds.now() - start)
            own = (Seconds.now() - start).shown()
            self.fixtures[key] = max(own, self.fixtures.get(key, own), key=lambda found: found["wall"])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.outcome != "passed" and report.nodeid in self.tests:
            self.tests[report.nodeid]["outcome"] = report.outcome

    def pytest_sessionfinish(self) -> None:
        self.coverage.stop()
        self.coverage.save()
        lines: Contexts = {}
        data = self.coverage.get_data()
        for path in sorted(data.measured_files()):
            name = str(Path(path).resolve().relative_to(self.package.parent))
            by_line = {str(line): [c for c in found if c] for line, found in data.contexts_by_lineno(path).items()}
            lines[name] = {line: found for line, found in by_line.items() if found}
        record = {"tests": self.tests, "fixtures": self.fixtures, "lines": lines}
        self.record.write_text(json.dumps(record))

    def _enter(self, context: str) -> None:
        self.stack.append(context)
        self.coverage.switch_context(context)

    def _leave(self) -> None:
        self.stack.pop()
        self.coverage.switch_context(self.stack[-1])


class Chosen:
    """Run the chosen tests only, in the order given, and write each failure as a line of JSON."""

    def __init__(self, tests: list[str], reports: Path) -> None:
        self.place = {test: number for number, test in enumerate(tests)}
        self.reports = reports

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        others = [item for item in items if item.nodeid not in self.place]
        items[:] = sorted((item for item in items if item.nodeid in self.place), key=lambda i: self.place[i.nodeid])
        config.hook.pytest_deselected(items=others)
        self._write({"collected": len(items)})

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.outcome == "failed":
            crash = getattr(report.longrepr, "reprcrash", None)
            message = (getattr(crash, "message", None) or str(report.longrepr))[:300]
            self._write({"failed": report.nodeid, "when": report.when, "message": message})

    def _write(self, entry: dict[str, object]) -> None:
        with self.reports.open("a") as file:
            file.write(json.dumps(entry) + "\n")


def _key(fixturedef: Any) -> str:
    return f"{fixturedef.baseid}::{fixturedef.argname}"
