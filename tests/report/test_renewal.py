"""A page that keeps up with its run: renewed in the background, at the end, and never in the way."""

import threading
from pathlib import Path

import pytest

from soda_dist.report import renewal
from soda_dist.report.renewal import ReportWriter


class Pages:
    """Counts the pages that are written; fails as long as `fails`."""

    def __init__(self) -> None:
        self.written, self.fails, self.threads = 0, False, set[str]()
        self.again = threading.Event()

    def write(self, run: str) -> str:
        self.threads.add(threading.current_thread().name)
        self.written += 1
        self.again.set()
        if self.fails:
            raise OSError("no space left")
        return run


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> Pages:
    pages = Pages()
    monkeypatch.setattr(renewal, "write_report", pages.write)
    return pages


def test_the_page_is_renewed_in_a_thread_while_the_block_runs_and_once_after_it(pages: Pages, tmp_path: Path) -> None:
    with ReportWriter(str(tmp_path), print).renewing(seconds=0.01):
        for _ in range(2):
            assert pages.again.wait(10)
            pages.again.clear()
    written = pages.written
    assert pages.threads == {"report", threading.current_thread().name} and written >= 3
    assert not pages.again.wait(0.1) or pages.written == written, "nothing is written after the block"


def test_a_block_shorter_than_the_pause_writes_one_page_even_if_it_fails(pages: Pages, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), ReportWriter(str(tmp_path), print).renewing(seconds=60):
        raise ZeroDivisionError
    assert pages.written == 1


def test_writing_takes_a_small_share_of_the_time(pages: Pages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10**6, 30))  # each page takes half a minute
    monkeypatch.setattr(renewal.time, "monotonic", lambda: next(clock))
    pauses: list[float] = []

    class Over(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            pauses.append(timeout or 0.0)
            return len(pauses) == 3

    ReportWriter(str(tmp_path), print)._renew(Over(), 60.0)
    assert pauses == [60.0, 600.0, 600.0] and pages.written == 2


def test_a_page_that_cannot_be_written_is_said_once_and_stops_nothing(pages: Pages, tmp_path: Path) -> None:
    pages.fails, said = True, list[str]()
    report = ReportWriter(str(tmp_path), said.append)
    report.write()
    with report.renewing(seconds=60):
        report.write()
    assert pages.written == 3
    assert said == [f"{tmp_path}/report.html could not be written: OSError: no space left"]
