"""What watches a run: it gets metrics and pictures, and decides nothing."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol
from uuid import uuid4

from pydantic import TypeAdapter

from soda_dist.config.fields import CountOrZero, Node
from soda_dist.data.storage.folder import Folder
from soda_dist.data.storage.metadata import check, read_json
from soda_dist.parallel.progress import Say
from soda_dist.runs.folder import TRACKERS

UNPLOTTED = ("step", "time")
"""Fields of a line of `metrics.jsonl` that are no curves."""


class Observer(Protocol):
    """Follows one start of a run."""

    def start(self, step: int) -> None:
        """Training begins after `step`; what an earlier attempt sent of later steps comes again."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Take a line of `metrics.jsonl`."""

    def picture(self, step: int, name: str, png: bytes) -> None:
        """Take a PNG."""

    def close(self) -> None:
        """Send what is left; the last call."""


class Guarded:
    """Several observers, each made at the start and switched off at its first error, which is said once.

    Args:
        makers: by the name that messages call it.
    """

    def __init__(self, makers: Mapping[str, Callable[[], Observer]], say: Say) -> None:
        self._makers, self._say = dict(makers), say
        self._on: dict[str, Observer] = {}

    def start(self, step: int) -> None:
        for name in list(self._makers):
            self._try(name, lambda name=name: self._started(name).start(step))  # type: ignore[misc]

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        for name, observer in list(self._on.items()):
            self._try(name, lambda each=observer: each.metrics(step, values))  # type: ignore[misc]

    def picture(self, step: int, name: str, png: bytes) -> None:
        for tracker, observer in list(self._on.items()):
            self._try(tracker, lambda each=observer: each.picture(step, name, png))  # type: ignore[misc]

    def close(self) -> None:
        for name, observer in list(self._on.items()):
            self._try(name, observer.close)

    def _started(self, name: str) -> Observer:
        if name not in self._on:
            self._on[name] = self._makers[name]()
        return self._on[name]

    def _try(self, name: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # a tracker has the errors of its library, its network and its disk
            self._on.pop(name, None)
            self._makers.pop(name, None)
            lines = str(error).splitlines()
            said = f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
            self._say(f"{name} is off for the rest of this run ({said}); training continues")


class _Record(Node):
    id: str
    step: CountOrZero


_RECORDS: TypeAdapter[Any] = TypeAdapter(dict[str, _Record])


class Ledger:
    """What one tracker knows of a run: its id there, and the last step sent; kept in the run's `trackers.json`."""

    def __init__(self, run: Folder, tracker: str) -> None:
        self._run, self._tracker = run, tracker
        mine = self._records().get(tracker)
        self.known = mine is not None
        self.id, self.step = (str(mine["id"]), int(mine["step"])) if mine else (uuid4().hex[:12], 0)

    def set(self, *, id: str | None = None, step: int | None = None) -> None:  # noqa: A002
        """Store the id or the last step sent."""
        self.id, self.step = self.id if id is None else id, self.step if step is None else step
        self._run.write_json(TRACKERS, self._records() | {self._tracker: {"id": self.id, "step": self.step}})

    def _records(self) -> dict[str, Any]:
        if not self._run.exists(TRACKERS):
            return {}
        found: dict[str, Any] = read_json(self._run, TRACKERS)
        check(_RECORDS, found, self._run.file_uri(TRACKERS), "the id and the last step of each tracker")
        return found


def curves(values: Mapping[str, float | None]) -> dict[str, float]:
    """Return the fields of a line of `metrics.jsonl` that are curves, as numbers."""
    return {name: float(value) for name, value in values.items() if name not in UNPLOTTED and value is not None}


def short_name(run: Folder) -> str:
    """Return the last part of the run's URI."""
    return run.uri.rstrip("/").rpartition("/")[2]
