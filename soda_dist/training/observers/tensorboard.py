"""TensorBoard: event files in the run's folder `tensorboard`, local or in an object store."""

import struct
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from soda_dist.data.storage.folder import Folder
from soda_dist.runs.folder import TENSORBOARD
from soda_dist.training.observers.observer import curves

FLUSH_S = 20.0
"""Between two writes to the folder."""
COPIED_BYTES = 4 << 20
"""An object store cannot append, so files are copied whole; larger ones are followed by a new file."""


class TensorBoard:
    """Writes event files. TensorBoard drops the points of earlier attempts beyond the step at which one begins."""

    def __init__(self, run: Folder) -> None:
        self._folder = run.child(TENSORBOARD)
        self._scratch = None if run.is_local else tempfile.TemporaryDirectory(prefix="soda-tensorboard-")
        self._place = Path(self._folder.uri if self._scratch is None else self._scratch.name)
        self._writer: Any = None

    def start(self, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog

        self._close()
        self._open()
        self._event(step + 1, session_log=SessionLog(status=SessionLog.START))
        self._flush()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        points = [Summary.Value(tag=name, simple_value=value) for name, value in curves(values).items()]
        self._event(step, summary=Summary(value=points))
        if time.monotonic() - self._flushed > FLUSH_S:
            self._flush()

    def picture(self, step: int, name: str, png: bytes) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        width, height = struct.unpack(">II", png[16:24])
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
        self._event(step, summary=Summary(value=[Summary.Value(tag=name, image=image)]))
        self._flush()

    def close(self) -> None:
        self._close()
        if self._scratch is not None:
            self._scratch.cleanup()

    def _event(self, step: int, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.add_event(Event(wall_time=time.time(), step=step, **content))

    def _open(self) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer, self._flushed = EventFileWriter(str(self._place)), time.monotonic()

    def _flush(self) -> None:
        self._writer.flush()
        self._flushed = time.monotonic()
        if self._scratch is not None and self._copy() > COPIED_BYTES:
            self._close()
            self._open()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._copy()
            self._writer = None

    def _copy(self) -> int:
        """Copy the newest file to an object store; return its size."""
        if self._scratch is None:
            return 0
        newest = max(self._place.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        content = newest.read_bytes()
        self._folder.write(newest.name, content)
        return len(content)
