"""A real S3 server over HTTP for the tests that ask for one."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any
from uuid import uuid4

import pytest

from tests.cpu_time import CpuTime

S3_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test-key",
    "AWS_SECRET_ACCESS_KEY": "test-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(CpuTime(config), "cpu_time")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with tests on Ray come first, then files with slow tests: no worker is left with a long one at the end."""
    ray, slow = ({item.path for item in items if item.get_closest_marker(mark)} for mark in ("ray", "slow"))
    items.sort(key=lambda item: (item.path not in ray, item.path not in slow))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadfile`, one worker gets all files with tests on Ray, which share its cluster.

    Another gets tests/system, which starts Ray heads of its own.

    The controlling process does not collect, so it looks for the marker in the files. (`--dist loadgroup` of xdist 3.8
    does nothing under pytest 9.2, whose node ids cannot be changed.)
    """
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    @cache
    def scope(file: str) -> str:
        if file.startswith("tests/system/"):
            return "system"
        return "ray" if "mark.ray" in (config.rootpath / file).read_text() else file

    class RayTogether(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return scope(super()._split_scope(nodeid))

    return RayTogether(config, log)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The endpoint of a moto server in its own process; the AWS_* environment points to it until the session ends.

    A Ray cluster started after it hands that environment to its workers.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    endpoint = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**S3_ENVIRONMENT, "AWS_ENDPOINT_URL": endpoint}.items():
            patch.setenv(name, value)
        for name in ("AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
        try:
            _wait_for(endpoint, server)
            yield endpoint
        finally:
            server.kill()
            server.wait()


def _wait_for(endpoint: str, server: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    while server.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{endpoint}/moto-api/", timeout=5).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"no S3 server at {endpoint}")


@pytest.fixture(scope="session")
def new_bucket(s3_server: str) -> Callable[[], str]:
    """Makes an empty bucket at each call and returns its `s3://BUCKET`."""

    def make() -> str:
        import boto3

        bucket = f"test-{uuid4().hex}"
        boto3.client("s3", endpoint_url=s3_server).create_bucket(Bucket=bucket)
        return f"s3://{bucket}"

    return make


@pytest.fixture
def s3_uri(new_bucket: Callable[[], str]) -> str:
    """An empty bucket of the test's own."""
    return new_bucket()


@pytest.fixture(params=["local", "s3"])
def any_uri(request: pytest.FixtureRequest) -> str:
    """The URI of an empty place, once on the disk and once on S3."""
    if request.param == "s3":
        return request.getfixturevalue("s3_uri")
    return str(request.getfixturevalue("tmp_path"))


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.long)])
def source_uri(request: pytest.FixtureRequest) -> str:
    """As `any_uri`, but on S3 in `make test-long` only: for importers that read as another one does."""
    if request.param == "s3":
        return request.getfixturevalue("s3_uri")
    return str(request.getfixturevalue("tmp_path"))
