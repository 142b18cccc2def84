"""An object store that fails now and then costs time, never a byte; one that fails for good is told in one line."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from soda_dist.data.storage import open_folder
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
    with through(s3_server, faults, monkeypatch):
        begun = time.monotonic()
        with pytest.raises(UserError, match=says) as raised:
            folder.read("a")
        assert "\n" not in str(raised.value)
        assert time.monotonic() - begun < 100
