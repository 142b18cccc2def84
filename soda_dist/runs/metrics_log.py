"""JSON-lines files of a run, exact after a resume, on any storage.

`metrics.jsonl` has a line per logged step, `quarantine.jsonl` one each time an unreadable image was met.
"""

import json
from typing import Any

from soda_dist.data.storage.folder import Folder

METRICS = "metrics.jsonl"
QUARANTINE = "quarantine.jsonl"


class JsonLines:
    """A JSON-lines file, rewritten whole at each flush since object stores cannot append.

    A hundred thousand steps at the default `log_every_steps` are half a megabyte.
    """

    def __init__(self, folder: Folder, name: str) -> None:
        self._folder, self._name = folder, name
        self._lines: list[dict[str, Any]] = []
        self._changed = False

    def resume(self, step: int) -> None:
        """Keep the lines of earlier attempts up to `step`; drop later ones, which training will log again."""
        if self._folder.exists(self._name):
            lines = [json.loads(line) for line in self._folder.read(self._name).splitlines()]
            self._lines = [line for line in lines if line["step"] <= step]
            self._changed = len(self._lines) < len(lines)

    def append(self, line: dict[str, Any]) -> None:
        self._lines.append(line)
        self._changed = True

    def flush(self) -> None:
        """Write the file if lines were added or dropped since the last flush."""
        if self._changed:
            self._folder.write(self._name, "".join(json.dumps(line) + "\n" for line in self._lines).encode())
            self._changed = False


def read_lines(folder: Folder, name: str) -> list[dict[str, Any]]:
    """Read the lines of a run's JSON-lines file; empty if it was never written."""
    if not folder.exists(name):
        return []
    return [json.loads(line) for line in folder.read(name).splitlines()]
