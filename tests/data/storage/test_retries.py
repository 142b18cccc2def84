"""An object store that fails now and then costs time, never a byte; one that fails for good is told in one line."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from soda_dist.data.storage import retries
from soda_dist.data.storage.folder import open_folder
from soda_dist.errors import UserError
from tests.faulty_proxy import Faults, faulty_proxy

FAULTS = {
    "failing": Faults(refused=0.04, broken=0.03, throttled=0.03),
    "slow": Faults(delayed=0.05, seconds=1.5),
    "cut in mid-body": Faults(cut=0.1),
    "all of it": Faults(refused=0.04, broken=0.03, throttled=0.03, delayed=0.05, seconds=1.5, cut=0.05),
}


@contextmanager
def through(endpoint: str, faults: Faults, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with faulty_proxy(endpoint, faults) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy)
        yield
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAULTS)
def test_no_byte_is_lost_or_doubled(kind: str, s3_uri: str, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    faults, folder = FAULTS[kind], open_folder(s3_uri)
    contents = {f"part/{number:03d}": bytes([number]) * (1000 + 7919 * number) for number in range(40)}
    with through(s3_server, faults, monkeypatch):
        for name, data in contents.items():
            folder.write(name, data)
        assert [(entry.name, entry.size) for entry in folder.list()] == [(n, len(d)) for n, d in contents.items()]
        for name, data in contents.items():
            assert folder.read(name) == data
            with folder.explained(name), folder.open(name) as file:
                assert file.read_at(500, 300) == data[300:800]
        assert not folder.exists("part/none")
    assert sum(count for name, count in faults.met.items() if name != "passed") >= 5, faults.met


@pytest.mark.parametrize(
    ("faults", "says"),
    [
        (Faults(throttled=1.0), "SLOW_DOWN|SlowDown|from the store"),
        (Faults(broken=1.0), "from the store"),
        (Faults(refused=1.0), "does not answer"),
        (Faults(expired=1.0), "ExpiredToken"),
    ],
)
def test_a_store_that_fails_for_good_is_one_line(
    faults: Faults, says: str, s3_uri: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = open_folder(s3_uri)
    folder.write("a", b"1")
    monkeypatch.setattr(retries, "PAUSES_S", (0.01, 0.01))
    with through(s3_server, faults, monkeypatch):
        begun = time.monotonic()
        with pytest.raises(UserError, match=says) as raised:
            folder.read("a")
        assert "\n" not in str(raised.value)
        assert time.monotonic() - begun < 100


def test_a_store_that_is_busy_for_longer_is_asked_again(
    s3_uri: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than the SDK tries by itself, of which it says nothing."""
    folder, paused, said = open_folder(s3_uri), [], []
    monkeypatch.setattr(retries.logger, "warning", lambda text, *words: said.append(text % words))
    folder.write("a", b"1")
    retries.retries_since_last()
    faults = Faults()
    with through(s3_server, faults, monkeypatch):
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
