"""JSON-lines files of a run, exact after a resume, on any storage.

`metrics.jsonl` has a line per logged step, `quarantine.jsonl` one each time an unreadable image was met.
"""

import json
import threading
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from soda_dist.data.storage.folder import Folder
from soda_dist.data.storage.metadata import check, parse_json, read_limited
from soda_dist.errors import UserError

METRICS = "metrics.jsonl"
QUARANTINE = "quarantine.jsonl"


MAX_BYTES = 256 << 20
"""Size limit of such a file."""


class _Line(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    step: Annotated[int, Field(ge=0, lt=10**12)]


class _Metrics(_Line):
    __pydantic_extra__: dict[str, float | bool | None]


_KINDS: dict[str, TypeAdapter[Any]] = {METRICS: TypeAdapter(_Metrics), QUARANTINE: TypeAdapter(_Line)}


class JsonLines:
    """A JSON-lines file, rewritten whole at each flush since object stores cannot append.

    A hundred thousand steps at the default `log_every_steps` are half a megabyte.
    """

    def __init__(self, folder: Folder, name: str) -> None:
        self._folder, self._name = folder, name
        self._lines: list[dict[str, Any]] = []
        self._changed = False
        self._lock = threading.Lock()

    def resume(self, step: int) -> None:
        """Keep the lines of earlier attempts up to `step`; drop later ones, which training will log again."""
        lines = read_lines(self._folder, self._name)
        self._lines = [line for line in lines if line["step"] <= step]
        self._changed = len(self._lines) < len(lines)

    @property
    def lines(self) -> Sequence[dict[str, Any]]:
        """The lines so far, oldest first."""
        return self._lines

    def append(self, line: dict[str, Any]) -> None:
        self._lines.append(line)
        self._changed = True  # after the line, and unset before lines are read: a line is never left behind

    def flush(self) -> None:
        """Write the file if lines were added or dropped since the last flush; from any thread, beside `append`."""
        with self._lock:
            if self._changed:
                self._changed = False
                try:
                    lines = list(self._lines)
                    self._folder.write(self._name, "".join(json.dumps(line) + "\n" for line in lines).encode())
                except BaseException:
                    self._changed = True
                    raise


def read_lines(folder: Folder, name: str, needs: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Read the lines of a run's JSON-lines file; empty if it was never written.

    Args:
        needs: fields that every line must have, as numbers.

    Raises:
        UserError: a line that is not JSON, or of other types, or without a step or a needed field.
    """
    if not folder.exists(name):
        return []
    lines = []
    for number, text in enumerate(read_limited(folder, name, MAX_BYTES).splitlines(), 1):
        where = f"{folder.file_uri(name)}, line {number}"
        line = parse_json(text, where)
        check(_KINDS[name], line, where, "a step and its numbers, as written")
        for field in needs:
            if not isinstance(line.get(field), int | float):
                raise UserError(where, f"{line.get(field)} as {field}", "a number", "remove the line")
        lines.append(line)
    return lines
