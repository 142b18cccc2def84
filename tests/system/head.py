"""A real Ray head on this machine with its own ports, token, folder and processes, so that it disturbs no other one."""

import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.util import get_node_ip_address

MEMORY = 80_000_000
"""Smallest object store that Ray accepts is 75 MB; this is the size of each node's."""
MARK = "SODA_TEST_CLUSTER"
IDLE_SECONDS = 3


@dataclass(frozen=True)
class FakeNodes:
    """Ray's fake nodes: real raylets on this machine, launched by the real autoscaler."""

    count: int
    cpus: int


@dataclass(frozen=True)
class Head:
    """A running head: how to reach it, and where it writes."""

    url: str
    folder: Path
    environment: dict[str, str]

    def request(self, path: str, token: str | None, body: dict | None = None) -> bytes:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(self.url + path, data, {**headers, "Content-Type": "application/json"})
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return answer.read()

    def answer(self, path: str, body: dict | None = None) -> Any:
        """What the head says to a request with the right token."""
        return json.loads(self.request(path, (self.folder / "token").read_text(), body))

    def nodes(self) -> dict[str, str]:
        """State of every node that the cluster has had, by its id."""
        answer = self.answer("/api/v0/nodes?limit=100")
        return {node["node_id"]: node["state"] for node in answer["data"]["result"]["result"]}

    def alive(self) -> set[str]:
        return {node for node, state in self.nodes().items() if state == "ALIVE"}

    def submit(self, working_dir: Path, command: list[str], output: Path) -> subprocess.Popen:
        """`ray job submit` in the background; its output, and the job's, go to a file."""
        with output.open("w") as stream:
            return subprocess.Popen(
                [_ray(), "job", "submit", "--address", self.url, "--working-dir", str(working_dir), "--", *command],
                env=self.environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )

    def start(self, working_dir: Path, command: list[str]) -> "Job":
        """As `submit`, by the request that `ray job submit` makes, without a process for it."""
        entrypoint = f"cd {shlex.quote(str(working_dir))} && {shlex.join(command)}"
        return Job(self, self.answer("/api/jobs/", {"entrypoint": entrypoint})["submission_id"])

    def logs(self) -> str:
        """The ends of the logs that explain a failure."""
        paths = [self.folder / "head.log", *self.folder.glob("ray/session_2*/logs/monitor.*")]
        return "\n".join(f"== {path.name}\n{path.read_text()[-3000:]}" for path in paths if path.exists())


@dataclass(frozen=True)
class Job:
    """A submitted job."""

    head: Head
    name: str

    def succeeded(self) -> bool | None:
        """None until it has ended."""
        status = self.head.answer(f"/api/jobs/{self.name}")["status"]
        return {"SUCCEEDED": True, "FAILED": False, "STOPPED": False}.get(status)

    def output(self) -> str:
        return self.head.answer(f"/api/jobs/{self.name}/logs")["logs"]

    def wait(self, seconds: float) -> str:
        """The output of a job that must succeed."""
        wait_for(lambda: self.succeeded() is not None, seconds, self.output)
        printed = self.output()
        assert self.succeeded(), printed + self.head.logs()
        return printed


def _ray() -> str:
    return str(Path(sys.executable).with_name("ray"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def _autoscaling(gcs_address: str, fake: "FakeNodes") -> dict:
    """Ray's fake provider; `gcs_address` frees it from port 6379, which another cluster may hold."""
    worker = {"CPU": fake.cpus, "object_store_memory": MEMORY}
    return {
        "cluster_name": "test",
        "max_workers": fake.count,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": IDLE_SECONDS / 60,
        "auth": {},
        "provider": {
            "type": "fake_multinode",
            "gcs_address": gcs_address,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": worker, "node_config": {}, "min_workers": 0, "max_workers": fake.count},
        },
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        "cluster_synced_files": [],
        "initialization_commands": [],
        **{f"{who}setup_commands": [] for who in ("", "head_", "worker_")},
        **{f"{who}_start_ray_commands": [] for who in ("head", "worker")},
    }


def _environment(folder: Path, mark: str) -> dict[str, str]:
    """Token mode for every process; nothing of another cluster; the mark by which the processes are found again."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    ours = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_FAKE_CLUSTER": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "OMP_NUM_THREADS": "1",
        MARK: mark,
    }
    return inherited | ours


def _start(folder: Path, mark: str, cpus: int, fake: "FakeNodes | None") -> tuple[Head, subprocess.Popen]:
    """Start a head, whose autoscaler may add `fake` nodes; its processes share one session."""
    (folder / "token").touch(mode=0o600)
    (folder / "token").write_text(secrets.token_hex(32))
    gcs, dashboard = _free_port(), _free_port()
    head = Head(f"http://127.0.0.1:{dashboard}", folder, _environment(folder, mark))
    options = {
        "temp-dir": folder / "ray",
        "port": gcs,
        "dashboard-port": dashboard,
        "ray-client-server-port": _free_port(),
        "dashboard-agent-listen-port": 0,
        "min-worker-port": 0,
        "max-worker-port": 0,
        "num-cpus": cpus,
        "object-store-memory": MEMORY if fake else 4 * MEMORY,
    }
    if fake:
        (folder / "fake.yaml").write_text(yaml.safe_dump(_autoscaling(f"{get_node_ip_address()}:{gcs}", fake)))
        options["autoscaling-config"] = folder / "fake.yaml"
    with (folder / "head.log").open("w") as stream:
        process = subprocess.Popen(
            [_ray(), "start", "--head", "--block", *(f"--{name}={value}" for name, value in options.items())],
            env=head.environment,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return head, process


def _own_processes(session: int, mark: str) -> set[int]:
    """Living processes of the head's session, and those with the test's mark: a job's driver has its own session."""
    own = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            ours = (
                os.getsid(int(folder.name)) == session or f"{MARK}={mark}".encode() in (folder / "environ").read_bytes()
            )
            alive = (folder / "cmdline").read_bytes() != b""
        except (ProcessLookupError, FileNotFoundError, PermissionError):
            continue
        if ours and alive:
            own.add(int(folder.name))
    return own


def _end(process: subprocess.Popen, mark: str) -> None:
    """Kill this cluster's processes and no others; new ones may appear between two looks."""

    def none_left() -> bool:
        for pid in _own_processes(process.pid, mark):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return not _own_processes(process.pid, mark)

    wait_for(none_left, 20, lambda: f"processes left: {_own_processes(process.pid, mark)}")
    process.wait(timeout=10)


def wait_for(condition: Callable[[], bool], seconds: float, explain: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds:g} s: {explain()}")
        time.sleep(0.2)


@contextmanager
def running_head(cpus: int, fake: FakeNodes | None = None) -> Iterator[Head]:
    """A head with `cpus` logical CPUs until the block ends; then none of its processes is left."""
    # Not tmp_path: Ray's socket names must stay under 108 characters.
    folder, mark = Path(tempfile.mkdtemp(prefix="soda-")), secrets.token_hex(8)
    head, process = _start(folder, mark, cpus, fake)
    try:

        def answers() -> bool:
            if process.poll() is not None:
                pytest.fail(f"the head ended with {process.returncode}:\n{head.logs()}")
            try:
                return len(head.alive()) == 1
            except (urllib.error.URLError, ConnectionError, TimeoutError, KeyError):
                return False

        wait_for(answers, 60, head.logs)
        yield head
    finally:
        _end(process, mark)
        shutil.rmtree(folder, ignore_errors=True)
