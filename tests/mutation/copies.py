"""A copy of a commit in which mutants are planted, and pytest run there: no file of the repository is touched."""

import io
import json
import os
import resource
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .records import Seconds

PLUGIN = "mutation_pytest_plugin"
PASSED, FAILED, NONE_COLLECTED = 0, 1, 5  # pytest's exit status
LIMITED = 'ulimit -S -t "$0" && exec "$@"'  # a process that uses more seconds of the CPU is ended by SIGXCPU
PLANTED_AT = 1_000_000_000  # a planted file's time of change; no two are the same, so that no stale bytecode is run


@dataclass(frozen=True)
class Outcome:
    """How a run of pytest ended: by its exit status, a failed test, or a limit of time."""

    status: int
    collected: int
    failed: str
    message: str
    limit: str
    seconds: Seconds


class Copy:
    """`scratch/tree` holds the commit; `scratch` also the plugin and pytest's folders."""

    def __init__(self, scratch: Path, package: str, python: str, niceness: int) -> None:
        self.scratch = scratch.resolve()
        self.tree = self.scratch / "tree"
        self.package, self.python, self.niceness = package, python, niceness
        self.planted = 0

    def unpack(self, repository: Path, commit: str) -> str:
        """Name the commit by its hash; fill the tree anew, and check that Python imports the package from it."""
        shutil.rmtree(self.tree, ignore_errors=True)
        self.tree.mkdir(parents=True)
        packed = subprocess.run(
            ["git", "-C", str(repository), "archive", commit], check=True, capture_output=True, timeout=60
        )
        with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
            archive.extractall(self.tree, filter="data")
        plugins = self.scratch / "plugin"
        plugins.mkdir(exist_ok=True)
        shutil.copy(Path(__file__).with_name("pytest_plugin.py"), plugins / f"{PLUGIN}.py")
        code = f"import {self.package}, tests; print({self.package}.__file__, tests.__file__)"
        printed = subprocess.run(
            [self.python, "-c", code],
            check=True,
            capture_output=True,
            text=True,
            cwd=self.tree,
            env=self._environment({}),
            timeout=60,
        ).stdout.split()
        if printed != [str(self.tree / name / "__init__.py") for name in (self.package, "tests")]:
            raise RuntimeError(f"imported from {printed}, not from {self.tree}")
        named = ["git", "-C", str(repository), "rev-parse", "--short=12", commit]
        return subprocess.run(named, check=True, capture_output=True, text=True, timeout=60).stdout.strip()

    @contextmanager
    def with_text(self, file: str, text: str) -> Iterator[None]:
        """The file holds the text meanwhile; afterwards what it held, with its old time of change."""
        path = self.tree / file
        before, times = path.read_bytes(), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
        self.planted += 1
        try:
            path.write_text(text)
            os.utime(path, (PLANTED_AT + self.planted, PLANTED_AT + self.planted))
            yield
        finally:
            path.write_bytes(before)
            os.utime(path, ns=times)

    def record(self, path: Path, arguments: list[str]) -> None:
        """Run pytest with the arguments, and write to `path` which test runs which line."""
        variables = {
            "MUTATION_RECORD": str(path.resolve()),
            "MUTATION_PACKAGE": str(self.tree / self.package),
            "COVERAGE_CORE": "ctrace",
        }
        status = subprocess.run(
            self._pytest(arguments), cwd=self.tree, env=self._environment(variables), check=False
        ).returncode
        path.with_suffix(".coverage").unlink(missing_ok=True)
        if status not in (PASSED, FAILED, NONE_COLLECTED):
            path.unlink(missing_ok=True)
            raise RuntimeError(f"pytest ended with status {status}; nothing is recorded of {' '.join(arguments)}")

    def run(self, tests: list[str], expected: Seconds) -> Outcome:
        """Run the tests in this order until one fails; a limit of time is several times what is expected."""
        chosen, reports = self.scratch / "tests.txt", self.scratch / "reports.jsonl"
        chosen.write_text("\n".join(tests))
        reports.write_text("")
        variables = {"MUTATION_TESTS": str(chosen), "MUTATION_REPORTS": str(reports)}
        files = list(dict.fromkeys(test.partition("::")[0] for test in tests))
        cpu_limit, wall_limit = int(60 + 5 * expected["cpu"]), 300 + 10 * expected["wall"]
        start, used = time.monotonic(), _children()
        process = subprocess.Popen(
            ["sh", "-c", LIMITED, str(cpu_limit), *self._pytest(["-x", "--tb=line", "--timeout=3600", *files])],
            cwd=self.tree,
            env=self._environment(variables),
            stdout=(self.scratch / "pytest.log").open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status, limit = process.wait(wall_limit), ""
        except subprocess.TimeoutExpired:
            limit = "wall"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        status = process.wait()
        entries = [json.loads(line) for line in reports.read_text().splitlines()]
        failed: dict[str, str] = next((entry for entry in entries if "failed" in entry), {})
        return Outcome(
            status=status,
            collected=sum(entry.get("collected", 0) for entry in entries),
            failed=failed.get("failed", ""),
            message=failed.get("message", ""),
            limit="cpu" if status == -signal.SIGXCPU else limit,
            seconds={"wall": round(time.monotonic() - start, 1), "cpu": round(_children() - used, 1)},
        )

    def _pytest(self, arguments: list[str]) -> list[str]:
        options = ["-q", "-p", "no:cacheprovider", "-p", PLUGIN, f"--basetemp={self.scratch / 'tmp'}"]
        return ["nice", "-n", str(self.niceness), self.python, "-m", "pytest", *options, *arguments]

    def _environment(self, variables: dict[str, str]) -> dict[str, str]:
        inherited = filter(None, [os.environ.get("PYTHONPATH")])
        path = os.pathsep.join([str(self.tree), str(self.scratch / "plugin"), *inherited])
        return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **variables}


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
