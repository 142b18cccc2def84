"""Keeps `report.html` up to date while a run is trained or evaluated; a page that cannot be written stops nothing."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from soda_dist.report.page import write_report
from soda_dist.runs.folder import REPORT, open_run

SECONDS = 60.0
"""Pause between two pages of a run in training."""
SHARE = 0.05
"""Largest share of the time that writing may take: pages of long runs are renewed less often."""


class ReportWriter:
    """Writes the report of one run whenever asked; the last writer wins.

    Args:
        run_uri: the run's folder.
        say: gets one line the first time that the report cannot be written.
    """

    def __init__(self, run_uri: str, say: Callable[[str], None]) -> None:
        self.uri = open_run(run_uri).file_uri(REPORT)
        self._run, self._say, self._failed = run_uri, say, False
        self._one = threading.Lock()

    def write(self) -> None:
        """Write the report; a failure is said once and goes no further."""
        with self._one:
            try:
                write_report(self._run)
            except Exception as error:  # whatever it is, training and evaluation matter more
                if not self._failed:
                    self._say(f"{self.uri} could not be written: {type(error).__name__}: {error}")
                self._failed = True

    @contextmanager
    def renewing(self, seconds: float = SECONDS) -> Iterator[None]:
        """Write the report at most every `seconds` in a thread of its own, and at the end."""
        over = threading.Event()
        thread = threading.Thread(target=self._renew, args=(over, seconds), name="report", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self.write()

    def _renew(self, over: threading.Event, seconds: float) -> None:
        pause = seconds
        while not over.wait(pause):
            began = time.monotonic()
            self.write()
            pause = max(seconds, (time.monotonic() - began) / SHARE)
