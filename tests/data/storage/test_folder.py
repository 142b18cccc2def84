"""URIs, folders on the disk, and a wrong S3: what the user can mend is one line, soon, and without secrets."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from soda_dist.config import load_config
from soda_dist.data.storage import s3
from soda_dist.data.storage.folder import Entry, Folder, locate, open_folder
from soda_dist.errors import UserError

SECRET = "do-not-show-this-secret"


def names_in(path: Path) -> list[str]:
    return sorted(found.name for found in path.iterdir())


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("1")
    with pytest.raises(UserError, match="folder: got a folder; allowed: a file"):
        open_folder(str(tmp_path)).read("folder")
    with pytest.raises(UserError, match="got a folder"):
        open_folder(str(tmp_path)).write("folder", b"1")
    with pytest.raises(UserError, match="got a path through a file"):
        open_folder(str(tmp_path)).write("file/inside", b"1")


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = open_folder(str(tmp_path))
    folder.write("x", b"old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk fault")))
    with pytest.raises(OSError, match="disk fault"):
        folder.write("x", b"new")
    assert folder.read("x") == b"old"
    assert names_in(tmp_path) == ["x"]


def test_a_killed_write_is_absent_and_hidden(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    folder.write("a/x", b"old")
    code = (
        "import os, signal, sys; from soda_dist.data.storage.folder import open_folder\n"
        "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        "open_folder(sys.argv[1]).write('a/x', b'new')"
    )
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, timeout=60)
    assert result.returncode == -signal.SIGKILL
    assert len(names_in(tmp_path / "a")) == 2, "the temporary file should still be there"
    assert folder.list() == [Entry("a/x", 3)]
    assert folder.read("a/x") == b"old"
    folder.discard_temporary()
    assert names_in(tmp_path / "a") == ["x"]


def test_a_listing_of_folders_reads_one_level(tmp_path: Path) -> None:
    """A name that no listing survives, deeper down, is not met."""
    (tmp_path / "a").mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/a/caf\xe9.jpg")).write_bytes(b"1")
    assert open_folder(str(tmp_path)).folders() == ["a"]
    assert open_folder(str(tmp_path)).files() == []


def test_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_folder("data").uri == open_folder("./x/../data/").uri == str(tmp_path / "data")
    assert open_folder(f"file://{tmp_path}/a%20b").uri == f"{tmp_path}/a b"
    assert open_folder(" s3://bucket//a/b/ ") == Folder("s3://bucket/a/b")
    assert open_folder("gs://bucket").uri == "gs://bucket"
    assert locate("s3://bucket/a/x.tar") == (Folder("s3://bucket/a"), "x.tar")
    assert locate("x.tar") == (Folder(str(tmp_path)), "x.tar")


@pytest.mark.parametrize(
    "uri",
    ["", "  ", "http://host/x", "s3://", "s3:///key", "hdfs://a/b", "S3://b/x", "file://data/x", "run:/x", "gs:b"],
)
def test_a_wrong_uri_is_refused(uri: str) -> None:
    with pytest.raises(UserError, match="allowed: "):
        open_folder(uri)
    with pytest.raises(UserError, match="a file in a folder"):
        locate("s3://bucket")


SECRET_URIS = (
    f"s3://key:{SECRET}@bucket/x",
    f"s3://key:half/{SECRET}@bucket/x",
    f"s3://bucket/x?secret_key={SECRET}",
    f"gs://{SECRET}@bucket",
    f"s3:/key:{SECRET}@bucket/x",
    f"s3:key:{SECRET}@bucket",
    f"https:/user:{SECRET}@host/x",
    f"hdfs://user:{SECRET}@host/x",
    f"file://user:{SECRET}@host/x",
)


@pytest.mark.parametrize("uri", SECRET_URIS)
def test_secrets_in_a_uri_are_not_repeated(uri: str) -> None:
    for field in ("encoder.weights", "evaluation.inception.weights"):
        with pytest.raises(UserError, match=field) as refused:
            load_config("demo", [f"{field}='{uri}'"])
        assert SECRET not in str(refused.value)
    with pytest.raises(UserError) as caught:
        open_folder(uri)
    assert SECRET not in str(caught.value)


def test_a_colon_in_a_path_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("run-10:30/x", "./s3:/x", "a/s3:/x", "12:/x"):
        assert open_folder(name).uri == str(tmp_path / name)


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x"])
def test_names_stay_below_the_folder(name: str, tmp_path: Path) -> None:
    for call in (open_folder(str(tmp_path)).read, open_folder(str(tmp_path)).child):
        with pytest.raises(ValueError, match="not a relative name"):
            call(name)


@pytest.fixture
def nobody(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")


def test_a_public_bucket_is_read_without_credentials(
    s3_uri: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3

    said = list[str]()
    monkeypatch.setattr(s3.logger, "warning", lambda text, *words: said.append(text % words))
    open_folder(s3_uri).write("a", b"1")
    assert not said
    _, _, bucket, *path = s3_uri.split("/")
    boto3.client("s3").put_object_acl(Bucket=bucket, Key="/".join([*path, "a"]), ACL="public-read")
    request.getfixturevalue("nobody")
    assert [entry.name for entry in open_folder(s3_uri).list()] == ["a"]
    assert open_folder(s3_uri).read("a") == b"1"
    assert said == [f"s3://{bucket}: no credentials found; reading it as a public bucket"]


def test_no_credentials(bad_server: Callable[[int, str], None], nobody: None) -> None:
    bad_server(403, "AccessDenied")
    with pytest.raises(UserError, match=r"AWS credentials: got none; allowed: .* or a public bucket"):
        open_folder("s3://private-bucket").list()


def test_half_the_credentials(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", SECRET)
    with pytest.raises(UserError, match="AWS credentials") as caught:
        open_folder(s3_uri).list()
    assert SECRET not in str(caught.value)


def test_a_profile_that_is_not_there(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(UserError, match="AWS_PROFILE: got nobody"):
        open_folder(s3_uri).list()


@pytest.fixture
def bad_server(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, str], None]]:
    """Makes S3 a server that answers everything with one status and error code."""
    answer = [500, ""]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = f"<?xml version='1.0'?><Error><Code>{answer[1]}</Code><Message>{SECRET}</Message></Error>".encode()
            self.send_response(answer[0])
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_HEAD = do_PUT = do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:{SECRET}@127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    yield lambda status, code: answer.__setitem__(slice(None), [status, code])
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"])
def test_credentials_that_the_store_refuses(bad_server: Callable[[int, str], None], code: str) -> None:
    bad_server(403, code)
    with pytest.raises(UserError, match=f"AWS credentials: got {code}") as caught:
        open_folder("s3://some-bucket").list()
    assert SECRET not in str(caught.value)


def test_a_store_that_is_ill(bad_server: Callable[[int, str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "ATTEMPTS", 1)
    bad_server(400, "SomethingElse")
    with pytest.raises(UserError, match="from the store") as caught:
        open_folder("s3://some-bucket").read("x")
    assert SECRET not in str(caught.value)


def test_a_bucket_that_is_not_ours(bad_server: Callable[[int, str], None]) -> None:
    bad_server(403, "AccessDenied")
    with pytest.raises(UserError, match="got no permission") as caught:
        open_folder("s3://other-bucket").read("x")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("answers", [False, True], ids=["refused", "silent"])
def test_an_endpoint_that_does_not_answer(s3_server: str, answers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "READ_SECONDS", 1)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if answers:
            listener.listen(8)
        port = listener.getsockname()[1]
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:{SECRET}@127.0.0.1:{port}")
        began = time.monotonic()
        with pytest.raises(UserError, match=f"AWS_ENDPOINT_URL: got http://127.0.0.1:{port}, which does not") as caught:
            open_folder("s3://some-bucket").read("x")
    assert time.monotonic() - began < 10
    assert SECRET not in str(caught.value)


def test_the_wait_for_an_endpoint_is_bounded() -> None:
    assert 2 * max(s3.CONNECT_SECONDS, s3.READ_SECONDS) < 18


def test_an_endpoint_without_a_scheme(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:9000")
    with pytest.raises(UserError, match="AWS_ENDPOINT_URL"):
        open_folder("s3://some-bucket").list()


def test_a_name_that_is_not_utf8_is_said(tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(b"1")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")).write_bytes(b"1")
    for listing in (
        open_folder(str(tmp_path)).list,
        open_folder(str(tmp_path)).files,
        open_folder(str(tmp_path)).folders,
    ):
        with pytest.raises(
            UserError, match=r"a file whose name is not UTF-8: .*caf.*; allowed: names in UTF-8; rename it"
        ):
            listing()


def test_a_local_path_becomes_the_file_when_its_block_ends(any_uri: str) -> None:
    folder = open_folder(any_uri)
    for content in (b"first", b"second"):
        with folder.replacing("a/file.bin", "scratch") as path:
            path.write_bytes(content)
            assert not folder.exists("a/file.bin") or folder.read("a/file.bin") == b"first"
        assert folder.read("a/file.bin") == content
    with pytest.raises(ValueError, match="in the middle"), folder.replacing("a/file.bin") as path:
        path.write_bytes(b"third")
        raise ValueError("in the middle")
    assert folder.read("a/file.bin") == b"second"
    assert [entry.name for entry in folder.list()] == ["a/file.bin"] and not path.exists()
