"""Real object-store servers over HTTP, and empty places on them, for the tests that ask for one."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any
from uuid import uuid4

import pytest

from tests.cpu_time import CpuTime
from tests.stores import gcs_store, new_gcs_bucket, new_s3_bucket, s3_store


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
    with s3_store() as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def gcs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """As `s3_server`, for Google Cloud Storage."""
    with gcs_store(tmp_path_factory.mktemp("gcs")) as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def new_bucket(s3_server: str) -> Callable[[], str]:
    """Makes an empty bucket at each call and returns its `s3://BUCKET`."""
    return lambda: new_s3_bucket(s3_server)


@pytest.fixture(scope="session")
def s3_bucket(new_bucket: Callable[[], str]) -> str:
    """One bucket for all: a process's first request to a bucket costs half a second."""
    return new_bucket()


@pytest.fixture(scope="session")
def gcs_bucket(gcs_server: str) -> str:
    """As `s3_bucket`, `gs://BUCKET`."""
    return new_gcs_bucket(gcs_server)


@pytest.fixture
def s3_uri(s3_bucket: str) -> str:
    """An empty place on S3, of the test's own."""
    return f"{s3_bucket}/{uuid4().hex}"


@pytest.fixture
def gcs_uri(gcs_bucket: str) -> str:
    """As `s3_uri`, on Google Cloud Storage."""
    return f"{gcs_bucket}/{uuid4().hex}"


def _place(request: pytest.FixtureRequest) -> str:
    fixture = {"local": "tmp_path", "s3": "s3_uri", "gs": "gcs_uri"}[request.param]
    return str(request.getfixturevalue(fixture))


@pytest.fixture(params=["local", "s3"])
def any_uri(request: pytest.FixtureRequest) -> str:
    """The URI of an empty place, once on the disk and once on S3."""
    return _place(request)


@pytest.fixture(params=["local", "s3", "gs"])
def every_uri(request: pytest.FixtureRequest) -> str:
    """As `any_uri`, and once on Google Cloud Storage: for what depends on the store itself."""
    return _place(request)


@pytest.fixture(params=["s3", "gs"])
def store_uri(request: pytest.FixtureRequest) -> str:
    """The URI of an empty place on each object store."""
    return _place(request)


@pytest.fixture(params=["local", *(pytest.param(store, marks=pytest.mark.long) for store in ("gs", "s3"))])
def source_uri(request: pytest.FixtureRequest) -> str:
    """As `every_uri`, but on object stores in `make test-long` only: for importers that read as another one does."""
    return _place(request)


@pytest.fixture(params=["local", "gs", pytest.param("s3", marks=pytest.mark.long)])
def layout_uri(request: pytest.FixtureRequest) -> str:
    """For one import of every layout: of Google Cloud Storage's client, which returns no folders, too."""
    return _place(request)
