"""An object store that fails now and then costs time, never a byte; one that fails for good is one line."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import fs

from soda_dist.data.storage import gcs, retries
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.errors import UserError
from tests.faulty_proxy import Faults, faulty_proxy

FAULTS = {
    "failing": Faults(refused=0.04, broken=0.03, throttled=0.03),
    "slow": Faults(delayed=0.05, seconds=1.5),
    "cut in mid-body": Faults(cut=0.1),
    "all of it": Faults(refused=0.04, broken=0.03, throttled=0.03, delayed=0.05, seconds=1.5, cut=0.05),
}


ENDPOINTS = {"s3": "AWS_ENDPOINT_URL", "gs": gcs.ENDPOINT}
EVERY_DAY = {"s3": FAULTS, "gs": ("all of it",)}


@contextmanager
def through(uri: str, faults: Faults, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put the faults between this process and the store of `uri`."""
    variable = ENDPOINTS[uri.partition("://")[0]]
    endpoint = os.environ[variable]
    with faulty_proxy(endpoint, faults) as proxy:
        monkeypatch.setenv(variable, proxy)
        yield
    monkeypatch.setenv(variable, endpoint)


@pytest.fixture(params=ENDPOINTS)
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty place on each store, whose client soon gives up by itself."""
    monkeypatch.setattr(gcs, "RETRY_TIME", timedelta(seconds=1))
    return request.getfixturevalue({"s3": "s3_uri", "gs": "gcs_uri"}[request.param])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "kind"),
    [
        pytest.param(scheme, kind, marks=[] if kind in EVERY_DAY[scheme] else pytest.mark.long)
        for scheme in ENDPOINTS
        for kind in FAULTS
    ],
    indirect=["place"],
)
def test_no_byte_is_lost_or_doubled(kind: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    faults, folder = FAULTS[kind], open_folder(place)
    contents = {f"part/{number:03d}": bytes([number]) * (1000 + 7919 * number) for number in range(40)}
    with through(place, faults, monkeypatch):
        for name, data in contents.items():
            folder.write(name, data)
        assert [(entry.name, entry.size) for entry in folder.list()] == [(n, len(d)) for n, d in contents.items()]
        for name, data in contents.items():
            assert folder.read(name) == data
            # pyarrow opens a file of Google's while it holds the lock that the proxy's threads need.
            if place.startswith("s3://"):
                with folder.explained(name), folder.open(name) as file:
                    assert file.read_at(500, 300) == data[300:800]
        assert not folder.exists("part/none")
        folder.remove_tree("part")
        assert folder.list() == []
    assert sum(count for name, count in faults.met.items() if name != "passed") >= 5, faults.met


@pytest.mark.parametrize(
    ("place", "faults", "says"),
    [
        ("s3", Faults(throttled=1.0), "SLOW_DOWN|SlowDown|from the store"),
        ("s3", Faults(broken=1.0), "from the store"),
        ("s3", Faults(refused=1.0), "does not answer"),
        ("s3", Faults(expired=1.0), "ExpiredToken"),
        ("gs", Faults(throttled=1.0), "UNAVAILABLE from Google Cloud Storage; allowed: a working store; rerun later"),
        ("gs", Faults(broken=1.0), "UNAVAILABLE from Google Cloud Storage"),
        ("gs", Faults(refused=1.0), "does not answer"),
    ],
    indirect=["place"],
)
def test_a_store_that_fails_for_good_is_one_line(
    place: str, faults: Faults, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = open_folder(place)
    folder.write("a", b"1")
    monkeypatch.setattr(retries, "PAUSES_S", (0.01, 0.01))
    with through(place, faults, monkeypatch):
        begun = time.monotonic()
        with pytest.raises(UserError, match=says) as raised:
            folder.read("a")
        assert "\n" not in str(raised.value)
        assert time.monotonic() - begun < 100


def test_a_file_that_did_not_open_is_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Google's client does after a failed request: the file is closed, without an error."""
    retries.retries_since_last()
    folder, opened = open_folder(str(tmp_path)), []
    folder.write("a", b"123")

    class Store(fs.LocalFileSystem):
        def open_input_file(self, path: str) -> pa.NativeFile:
            opened.append(super().open_input_file(path))
            if len(opened) < 3:
                opened[-1].close()
            return opened[-1]

    monkeypatch.setattr(Folder, "_filesystem", lambda _: Store())
    monkeypatch.setattr(retries, "PAUSES_S", (0.0, 0.0))
    assert folder.open("a").read_at(2, 1) == b"23"
    assert len(opened) == 3 and retries.retries_since_last() == 2
    opened.clear()
    monkeypatch.setattr(retries, "PAUSES_S", (0.0,))
    with pytest.raises(UserError, match="UNAVAILABLE from Google Cloud Storage; allowed: a working store"):
        folder.open("a")


@pytest.mark.parametrize("answers", [False, True], ids=["refused", "silent"])
def test_a_google_endpoint_that_does_not_answer(
    gcs_server: str, answers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gcs, "ANSWER_SECONDS", 0.3)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if answers:
            listener.listen(8)
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        monkeypatch.setenv(gcs.ENDPOINT, endpoint)
        with pytest.raises(UserError, match=f"Google Cloud Storage: got {endpoint}, which does not answer"):
            open_folder("gs://some-bucket").read("x")


def test_the_wait_for_google_is_bounded() -> None:
    assert gcs.ANSWER_SECONDS * gcs.ATTEMPTS < 18


def test_a_google_endpoint_without_a_scheme(gcs_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(gcs.ENDPOINT, "127.0.0.1:9000")
    with pytest.raises(UserError, match=f"{gcs.ENDPOINT}: got no scheme"):
        open_folder("gs://some-bucket").list()


@pytest.mark.parametrize(("content", "says"), [(None, "Cannot open credentials file"), ("{}", "type")])
def test_google_credentials_that_are_none(
    content: str | None, says: str, gcs_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "key.json"
    if content is not None:
        key.write_text(content)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key))
    for call in (open_folder(gcs_bucket).list, lambda: open_folder(gcs_bucket).write("x", b"1")):
        with pytest.raises(UserError, match=f"Google credentials: got .*{says}.*; allowed: .*; set GOOGLE") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_a_public_google_bucket_is_read_without_credentials(gcs_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = list[str]()
    open_folder(gcs_bucket).write("x", b"1")
    monkeypatch.setattr(gcs.logger, "warning", lambda text, *words: said.append(text % words))
    monkeypatch.setattr(gcs, "RETRY_TIME", timedelta(seconds=1))
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS")
    monkeypatch.setenv("GCE_METADATA_ROOT", "127.0.0.1:1")  # no machine of Google's
    monkeypatch.setenv("HOME", "/nowhere")
    assert open_folder(gcs_bucket).read("x") == b"1"
    assert said == [f"gs://{gcs_bucket.split('/')[2]}: no credentials found; reading it as a public bucket"]


def test_a_store_that_is_busy_for_longer_is_asked_again(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than the SDK tries by itself, of which it says nothing."""
    folder, paused, said = open_folder(s3_uri), [], []
    monkeypatch.setattr(retries.logger, "warning", lambda text, *words: said.append(text % words))
    folder.write("a", b"1")
    retries.retries_since_last()
    faults = Faults()
    with through(s3_uri, faults, monkeypatch):
        assert folder.read("a") == b"1", "the bucket is known to this process"
        monkeypatch.setattr(retries, "sleep", paused.append)
        faults.outage = 12
        assert folder.read("a") == b"1"
    assert 1 <= len(paused) <= 3 and retries.retries_since_last() == len(paused)
    assert retries.retries_since_last() == 0
    assert len(said) == len(paused)
    for number, (pause, most, text) in enumerate(zip(paused, retries.PAUSES_S, said, strict=False), 1):
        assert most / 2 <= pause <= most * 1.5
        assert text.startswith(f"{s3_uri}/a: got ") and "from the store; retrying in" in text
        assert text.endswith(f" s ({number} of 5)")


def test_pauses_are_drawn_apart_and_only_for_what_may_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    paused: list[float] = []
    monkeypatch.setattr(retries, "sleep", paused.append)
    busy = retries.StoreError("s3://a/b", "SLOW_DOWN from the store", "a store that works", "run again later")
    calls = []

    def fail() -> None:
        calls.append(len(paused))
        raise busy

    for _ in range(2):
        with pytest.raises(retries.StoreError, match="SLOW_DOWN"):
            retries.retry(fail)
    assert calls == [0, 1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10]
    assert len(set(paused)) == 10 and 15.5 <= sum(paused[:5]) <= 46.5
    retries.retries_since_last()

    def refuse() -> None:
        raise UserError("s3://a/b", "no permission", "a place that you may read", "change it")

    with pytest.raises(UserError, match="no permission"):
        retries.retry(refuse)
    assert len(paused) == 10 and retries.retries_since_last() == 0
