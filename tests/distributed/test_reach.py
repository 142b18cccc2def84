"""A Ray that cannot be reached, or does not start, is one line and soon: real sockets, and a real gRPC server."""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import pytest
import ray
from ray._private.authentication_test_utils import reset_auth_token_state
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

from soda_dist.distributed.runtime import cluster, reach
from soda_dist.distributed.runtime.ray_internals import own_versions
from soda_dist.errors import MachineError, UserError

ANSWER_SECONDS = reach.ANSWER_SECONDS
TOKEN = "a-token-of-32-bytes-or-a-few-more"


@pytest.fixture(autouse=True)
def no_ray_settings() -> Iterator[None]:
    """Ray reads its settings once a process: here, at the start and the end of each test."""
    if ray.is_initialized():
        pytest.skip("this process has joined a cluster")
    with pytest.MonkeyPatch.context() as monkeypatch:
        _clear(monkeypatch)
        reset_auth_token_state()
        yield
    reset_auth_token_state()


def _clear(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr(reach, "ANSWER_SECONDS", 0.5)


@contextmanager
def head(versions: dict[str, str] | None, token: str | None = None) -> Iterator[str]:
    """A server that answers as a head of some versions does; a real head is a minute of a core away."""

    class Store(gcs_service_pb2_grpc.InternalKVGcsServiceServicer):
        def InternalKVGet(self, request, context):  # noqa: N802 - as Ray spells it
            sent = dict(context.invocation_metadata()).get("authorization")
            if token and sent != f"Bearer {token}":
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
            assert (request.key, request.namespace) == (b"CLUSTER_METADATA", b"cluster")
            return gcs_service_pb2.InternalKVGetReply(value=json.dumps(versions).encode() if versions else b"")

    server = grpc.server(ThreadPoolExecutor(2))
    gcs_service_pb2_grpc.add_InternalKVGcsServiceServicer_to_server(Store(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def ours(**changed: str) -> dict[str, str]:
    own = own_versions()
    return {"ray_version": own["Ray"], "python_version": own["Python"], **changed}


@contextmanager
def listener(listens: bool) -> Iterator[str]:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        if listens:
            place.listen(8)
        yield f"127.0.0.1:{place.getsockname()[1]}"


@contextmanager
def web_server() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_head_of_our_versions_is_joined() -> None:
    with head(ours()) as address:
        assert reach.check_head(address) == address
    with head(None) as address:
        assert reach.check_head(address) == address, "a head that has only just started"


@pytest.mark.parametrize(
    ("place", "says"),
    [
        (lambda: listener(False), "where nothing answers"),
        (lambda: listener(True), "where a server does not answer as a Ray head"),
        (web_server, "where a server does not answer as a Ray head"),
    ],
    ids=["dead", "silent", "web"],
)
def test_what_is_no_head(place: Callable, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the session that every job opens."""
    with place() as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        begun = time.monotonic()
        with pytest.raises(UserError, match=f"RAY_ADDRESS: got {address}, {says}; allowed: HOST:PORT") as caught:
            cluster.ray_session(1).__enter__()
        assert time.monotonic() - begun < 10 and "\n" not in str(caught.value)


def test_the_wait_for_a_head_is_bounded() -> None:
    assert reach.CONNECT_SECONDS + ANSWER_SECONDS < 15


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("http://127.0.0.1:8265", "got http://, the address of the dashboard; allowed: HOST:PORT"),
        ("https://user:secret@host", "got https://, the address of the dashboard"),
        ("ray://127.0.0.1:10001", "got ray://, the address of Ray Client"),
        ("no-such-host.invalid:6379", "a host that does not resolve"),
        ("127.0.0.1", "got 127.0.0.1; allowed: HOST:PORT"),
        ("127.0.0.1:99999", "got 127.0.0.1:99999; allowed: HOST:PORT"),
        (":6379", "got :6379; allowed: HOST:PORT"),
    ],
)
def test_addresses_that_are_none(address: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        reach.check_head(address)
    assert "secret" not in str(caught.value)


def test_no_cluster_to_find(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "running_cluster", lambda: None)
    with pytest.raises(UserError, match="got auto, and no Ray runs on this machine"):
        reach.check_head("auto")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"ray_version": "2.9.0"}, "a head with Ray 2.9.0; allowed: Ray 2."),
        ({"python_version": "3.10.4"}, "a head with Python 3.10.4; allowed: Python 3."),
    ],
)
def test_other_versions(changed: dict[str, str], says: str) -> None:
    with head(ours(**changed)) as address, pytest.raises(UserError, match=f"{address}, {says}"):
        reach.check_head(address)


def test_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with head(ours(), TOKEN) as address:
        with pytest.raises(UserError, match=r"Ray's token: got no token; .*RAY_AUTH_MODE=token"):
            reach.check_head(address)
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
        reset_auth_token_state()
        with pytest.raises(UserError, match=f"Ray's token: got .*{tmp_path}/token"):
            reach.check_head(address)
        (tmp_path / "token").write_text(TOKEN[::-1])
        with pytest.raises(UserError, match="Ray's token: got a token that the head refuses") as caught:
            reach.check_head(address)
        assert TOKEN[::-1] not in str(caught.value)
        (tmp_path / "token").write_text(TOKEN)
        assert reach.check_head(address) == address


@pytest.mark.parametrize("failures", [1, 2])
def test_a_slow_start_is_tried_once_more(failures: int, monkeypatch: pytest.MonkeyPatch) -> None:
    starts, stops = [], []

    def init(**options: object) -> None:
        starts.append(options)
        if len(starts) <= failures:
            raise Exception("The current node timed out during startup. This could happen because")  # noqa: TRY002

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: stops.append(len(starts)))
    if failures == 1:
        cluster._start({"num_cpus": 1})
        assert stops == [1], "the first try is cleared away"
    else:
        with pytest.raises(MachineError, match="did not start in time, twice"):
            cluster._start({"num_cpus": 1})
    assert [start["address"] for start in starts] == ["local"] * 2


def test_other_faults_of_a_start_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = []

    def init(**options: object) -> None:
        starts.append(options)
        raise ValueError("num_cpus must be an integer")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with pytest.raises(ValueError, match="num_cpus"):
        cluster._start({"num_cpus": 1})
    assert len(starts) == 1


def test_a_long_scratch_path_is_not_used_for_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/tmp/" + "x" * 32)
    assert cluster.short_scratch() == {}
    monkeypatch.setenv("TMPDIR", "/tmp/" + "ü" * 20)
    assert cluster.short_scratch() == {"_temp_dir": "/tmp/ray"}
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match=r"TMPDIR: got a path of 45 bytes, and /tmp is not writable; .*RAY_TMPDIR"):
        cluster.short_scratch()


def test_a_home_that_is_not_writable_gets_a_token_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(cluster.tempfile, "tempdir", None)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with cluster._token():
        assert "RAY_AUTH_TOKEN_PATH" not in os.environ
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    with cluster._token():
        token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
        assert token.parent == tmp_path and len(token.read_text()) >= 32
        assert token.stat().st_mode & 0o777 == 0o600
    assert not token.exists() and "RAY_AUTH_TOKEN_PATH" not in os.environ
