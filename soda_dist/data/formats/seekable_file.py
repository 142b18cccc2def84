"""Python file objects over any storage, for libraries that seek: zipfile, gzip, h5py, indexed_gzip."""

import errno
import io
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor

from soda_dist.data.storage.folder import Folder

BLOCK = 2**20
BLOCKS_KEPT = 32
AHEAD = 8
"""Blocks prefetched at a time, to hide the latency of an object store."""


class ReadOnlyFile(io.RawIOBase):
    """A seekable file of `size` bytes at position `_at`; subclasses implement `readinto`."""

    def __init__(self, size: int) -> None:
        self._size, self._at = size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at


class SeekableFile(ReadOnlyFile):
    """A file read in 1 MiB blocks, one request each in an object store, with a cache of the latest blocks.

    Reads are short only at the end of the file. Not thread-safe. Without prefetching it reads in the calling thread:
    h5py reads under its lock, so a reader thread that garbage-collects an h5py object would deadlock.

    Args:
        sequential: the file is read from start to end; prefetch blocks from an object store.
    """

    def __init__(self, folder: Folder, name: str, *, sequential: bool = False) -> None:
        self._folder, self._name = folder, name
        self._file = folder.open(name)
        super().__init__(self._file.size())
        self._ahead = AHEAD if sequential and not folder.is_local else 0
        self._blocks: OrderedDict[int, Future[bytes]] = OrderedDict()
        self._pool = ThreadPoolExecutor(1 + self._ahead) if self._ahead else None

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        before = self._at
        if super().seek(offset, whence) < 0:
            self._at = before
            raise OSError(errno.EINVAL, "a position before the file's beginning")  # zipfile relies on it
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = done = max(0, min(len(buffer), self._size - self._at))
        while count:
            number, start = divmod(self._at, BLOCK)
            data = memoryview(self._block(number))[start : start + count]
            if not len(data):
                raise EOFError("the file was truncated while being read")
            at = done - count
            buffer[at : at + len(data)] = data
            self._at += len(data)
            count -= len(data)
        return done

    def close(self) -> None:
        if not self.closed:
            if self._pool:
                self._pool.shutdown(cancel_futures=True)
            self._file.close()
        super().close()

    def _block(self, number: int) -> bytes:
        last = (self._size - 1) // BLOCK
        for wanted in range(min(number + self._ahead, last), number - 1, -1):  # the current block last
            if wanted in self._blocks:
                self._blocks.move_to_end(wanted)
            else:
                self._blocks[wanted] = self._request(wanted)
        while len(self._blocks) > max(BLOCKS_KEPT, 1 + self._ahead):
            self._blocks.popitem(last=False)
        return self._blocks[number].result()

    def _request(self, number: int) -> Future[bytes]:
        if self._pool:
            return self._pool.submit(self._read, number)
        block: Future[bytes] = Future()
        block.set_result(self._read(number))
        return block

    def _read(self, number: int) -> bytes:
        size, start = min(BLOCK, self._size - number * BLOCK), number * BLOCK
        return self._folder.retry(self._name, lambda: self._file.read_at(size, start))
