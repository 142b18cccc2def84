"""A byte range of a file in any storage, such as a stored archive member, read like a file."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa

from soda_dist.data.storage.folder import Folder


@dataclass(frozen=True)
class ByteRange:
    """`length` bytes of a file from `start`; None = up to its end. Picklable."""

    folder: Folder
    name: str
    start: int = 0
    length: int | None = None

    @property
    def uri(self) -> str:
        return self.folder.file_uri(self.name)

    @contextmanager
    def opened(self) -> Iterator["OpenRange"]:
        with self.folder.explained(self.name), self.folder.open(self.name) as file:
            available = max(0, file.size() - self.start)
            yield OpenRange(file, self.start, available if self.length is None else min(self.length, available))


class OpenRange:
    """A byte range of an open file; offsets count from its start."""

    def __init__(self, file: pa.NativeFile, start: int, length: int) -> None:
        self._file, self._start, self._length = file, start, length

    def size(self) -> int:
        return self._length

    def read_at(self, size: int, offset: int, /) -> bytes:
        count = min(size, self._length - offset)
        return self._file.read_at(count, self._start + offset) if count > 0 else b""
