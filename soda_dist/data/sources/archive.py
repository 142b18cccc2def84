"""Tar archives read in place, from any storage, without unpacking."""

import io
import tarfile
from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa

from soda_dist.data.storage import Folder
from soda_dist.errors import UserError

BLOCK = 512
STREAM_BYTES = 8 * 2**20
"""Bytes an object store is asked for at a time when small members are listed: one request for many headers."""


class Member(NamedTuple):
    """A regular file inside an archive: its bytes lie at `offset` of the outermost file."""

    name: str
    offset: int
    size: int


def members(folder: Folder, name: str, *, start: int = 0, size: int | None = None, small: bool) -> Iterator[Member]:
    """The regular files of the tar that lies in `size` bytes from `start` on of the file `name`, in its order.

    Args:
        small: whether the members are small, so that reading through them costs less than a request each.

    Raises:
        UserError: not a tar, or one that ends too early.
    """
    uri = folder.file_uri(name)
    with folder.explained(name), folder.open(name) as file:
        span = _Span(file, start, file.size() - start if size is None else size)
        block = STREAM_BYTES if small and not folder.is_local else BLOCK
        end = 0
        try:
            with tarfile.open(fileobj=io.BufferedReader(span, block), mode="r:") as tar:
                for info in tar:
                    end = info.offset_data + -(-info.size // BLOCK) * BLOCK
                    if info.isreg():
                        yield Member(info.name, start + info.offset_data, info.size)
        except tarfile.TarError as error:
            raise UserError(uri, f"not a whole tar ({error})", "an uncompressed tar", "download it again") from None
        # tarfile takes a damaged header for the end; the true end is a block of zeros.
        span.seek(end)
        if span.read(BLOCK).strip(b"\0"):
            raise UserError(uri, f"a damaged header at byte {start + end}", "a whole tar", "download it again")


class _Span(io.RawIOBase):
    """Some bytes of a file, as a file."""

    def __init__(self, file: pa.NativeFile, start: int, size: int) -> None:
        self._file, self._start, self._size, self._at = file, start, min(size, file.size() - start), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = max(0, min(len(buffer), self._size - self._at))
        data = self._file.read_at(count, self._start + self._at) if count else b""
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
