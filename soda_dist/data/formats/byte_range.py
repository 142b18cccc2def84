"""A file of any storage, or some bytes of one, such as a stored member of an archive, as a file of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa

from soda_dist.data.storage.folder import Folder


@dataclass(frozen=True)
class Stretch:
    """The bytes of a file from `start` on, `length` of them or all. Picklable."""

    folder: Folder
    name: str
    start: int = 0
    length: int | None = None

    @property
    def uri(self) -> str:
        """How messages name it."""
        return self.folder.file_uri(self.name)

    @contextmanager
    def opened(self) -> Iterator["Window"]:
        """To be read by any number of threads."""
        with self.folder.explained(self.name), self.folder.open(self.name) as file:
            there = max(0, file.size() - self.start)
            yield Window(file, self.start, there if self.length is None else min(self.length, there))


class Window:
    """A stretch of an open file, whose places begin at 0."""

    def __init__(self, file: pa.NativeFile, start: int, length: int) -> None:
        self._file, self._start, self._length = file, start, length

    def size(self) -> int:
        """Bytes of the stretch."""
        return self._length

    def read_at(self, size: int, offset: int, /) -> bytes:
        """Bytes from a place on, as many as there are."""
        count = min(size, self._length - offset)
        return self._file.read_at(count, self._start + offset) if count > 0 else b""
