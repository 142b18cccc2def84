"""A pytest plugin: CPU seconds of each test file, child processes included, in a table at the end of every run."""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import psutil
import pytest

ROWS = 30
SLOW_S = 0.3
LOOK_EVERY_S = 1.0
COLLECTION, ENDING, CONTROLLER = "(imports and collection)", "(end of the session)", "(the controlling process)"


class Seen(NamedTuple):
    """A live process at the last look: its parent, its own CPU seconds and those of the children it has waited for."""

    parent: psutil.Process | None
    own: float
    waited: float


class ProcessTree:
    """CPU seconds of this process and of everything that it has started, servers and Ray clusters too.

    A process counts by what it had used when last looked at, or by what its parent got to know by waiting for it,
    whichever is more. Lost is what an unwaited process uses after the last look, and a process that starts and leaves
    the tree (its parent dies) between two looks. Between bookings a thread looks once a second: Ray's workers often
    live within one test, and nobody waits for them.
    """

    def __init__(self) -> None:
        self._root = psutil.Process()
        self._alive: dict[psutil.Process, Seen] = {}
        self._unwaited = 0.0
        self._lock = threading.Lock()

    def watch(self) -> None:
        """Look every second for as long as this process lives."""

        def look() -> None:
            while True:
                time.sleep(LOOK_EVERY_S)
                self.seconds()

        threading.Thread(target=look, name="cpu time", daemon=True).start()

    def seconds(self) -> float:
        """All CPU seconds so far; never less than before."""
        with self._lock:
            return self._add_up()

    def _add_up(self) -> float:
        now = self._look()
        gone: defaultdict[psutil.Process, float] = defaultdict(float)
        for process, seen in self._alive.items():
            if process not in now:
                gone[self._heir(seen.parent, now)] += seen.own + seen.waited
        for heir, seconds in gone.items():
            before = self._alive.get(heir)
            self._unwaited += max(0.0, seconds - (now[heir].waited - (before.waited if before else 0.0)))
        self._alive = now
        return self._unwaited + sum(seen.own + seen.waited for seen in now.values())

    def _heir(self, parent: psutil.Process | None, now: dict[psutil.Process, Seen]) -> psutil.Process:
        """The nearest ancestor that is still alive; the root beyond one that could not be looked at."""
        while parent is not None and parent not in now:
            seen = self._alive.get(parent)
            parent = seen.parent if seen else None
        return parent or self._root

    def _look(self) -> dict[psutil.Process, Seen]:
        """Live descendants, and processes once seen below this one whose parents have died since."""
        now: dict[psutil.Process, Seen] = {}
        for start in (self._root, *self._alive):
            if start in now or not start.is_running():
                continue
            try:
                found = [start, *start.children(recursive=True)]
            except psutil.Error:
                continue
            by_pid = {process.pid: process for process in found}
            for process in found:
                try:
                    with process.oneshot():
                        times, parent = process.cpu_times(), by_pid.get(process.ppid())
                except psutil.Error:
                    continue
                if process in self._alive:
                    parent = self._alive[process].parent
                waited = getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
                now[process] = Seen(parent, times.user + times.system, waited)
        return now


class CpuTime:
    """Books CPU seconds under test files; xdist's workers send theirs to the controlling process."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._controls = bool(config.getoption("numprocesses", None)) and not hasattr(config, "workerinput")
        self._tree, self._booked = ProcessTree(), 0.0
        self._spent: defaultdict[str, float] = defaultdict(float)

        self._missing: list[str] = []
        if not self._controls:
            self._tree.watch()

    def _book(self, name: str) -> None:
        """Book what was used since the last booking."""
        total = self._tree.seconds()
        self._spent[name] += total - self._booked
        self._booked = total

    def pytest_runtestloop(self) -> None:
        if not self._controls:
            self._book(COLLECTION)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
        before = time.monotonic()
        try:
            return (yield)
        finally:
            slow = time.monotonic() - before > SLOW_S
            if slow or nextitem is None or nextitem.path != item.path:
                self._book(_file(item))

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
    ) -> Iterator[None]:
        if fixturedef.scope != "session":
            return (yield)
        self._book(_file(request._pyfuncitem))
        try:
            return (yield)
        finally:
            self._book(f"(session fixture {fixturedef.argname})")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
        if nextitem is not None:
            return (yield)
        self._book(_file(item))
        try:
            return (yield)
        finally:
            self._book(ENDING)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        if not self._controls:
            self._book(ENDING)
        if hasattr(self._config, "workeroutput"):
            self._config.workeroutput["cpu_seconds"] = dict(self._spent)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        sent = getattr(node, "workeroutput", {}).get("cpu_seconds")
        if sent is None:
            self._missing.append(node.gateway.id)
        else:
            for name, seconds in sent.items():
                self._spent[name] += seconds

    @pytest.hookimpl(trylast=True)  # what other plugins do at the end counts
    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if not self._controls:
            self._book(ENDING)
        else:
            times = psutil.Process().cpu_times()
            self._spent[CONTROLLER] += times.user + times.system
        terminalreporter.section("CPU seconds by file, child processes included")
        rows, total = sorted(self._spent.items(), key=lambda row: -row[1]), sum(self._spent.values())
        rest = sum(seconds for _, seconds in rows[ROWS:])
        for name, seconds in (*rows[:ROWS], ("(all others)", rest)):
            terminalreporter.write_line(f"{seconds:8.1f}  {name}")
        terminalreporter.write_line(f"{total:8.1f}  in all: {total / 60:.1f} CPU-minutes")
        for name in self._missing:
            terminalreporter.write_line(f"the CPU seconds of {name} are missing: it ended early")


def _file(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]
