"""A file of any storage as one of Python's own, for libraries that seek: zipfile, gzip, h5py, indexed_gzip."""

import errno
import io
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor

from soda_dist.data.storage.folder import Folder

BLOCK = 2**20
BLOCKS_KEPT = 32
AHEAD = 8
"""Blocks that are asked for before their turn, at a time: a request to an object store is mostly waiting."""


class SeekableFile(io.RawIOBase):
    """A file that is read by blocks of a mebibyte, the last ones kept: in an object store each block is a request.

    Reads are whole: short only at the end of the file. It belongs to one thread, and reads in that one unless blocks
    are asked for early: h5py reads under its lock, and a thread that happens to collect an h5py object waits for it.

    Args:
        sequential: whether it is read from end to end, so that blocks of an object store are best asked for early.
    """

    def __init__(self, folder: Folder, name: str, *, sequential: bool = False) -> None:
        self._folder, self._name = folder, name
        self._file = folder.open(name)
        self._size, self._at = self._file.size(), 0
        self._ahead = AHEAD if sequential and not folder.is_local else 0
        self._blocks: OrderedDict[int, Future[bytes]] = OrderedDict()
        self._pool = ThreadPoolExecutor(1 + self._ahead) if self._ahead else None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if at < 0:
            raise OSError(errno.EINVAL, "a place before the file's beginning")  # which zipfile waits for
        self._at = at
        return at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = done = max(0, min(len(buffer), self._size - self._at))
        while count:
            number, start = divmod(self._at, BLOCK)
            data = memoryview(self._block(number))[start : start + count]
            if not len(data):
                raise EOFError("the file became shorter while it was read")
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
        for wanted in range(min(number + self._ahead, last), number - 1, -1):  # the one of now is the last to go
            if wanted in self._blocks:
                self._blocks.move_to_end(wanted)
            else:
                self._blocks[wanted] = self._asked(wanted)
        while len(self._blocks) > max(BLOCKS_KEPT, 1 + self._ahead):
            self._blocks.popitem(last=False)
        return self._blocks[number].result()

    def _asked(self, number: int) -> Future[bytes]:
        if self._pool:
            return self._pool.submit(self._read, number)
        block: Future[bytes] = Future()
        block.set_result(self._read(number))
        return block

    def _read(self, number: int) -> bytes:
        size, start = min(BLOCK, self._size - number * BLOCK), number * BLOCK
        return self._folder.patiently(self._name, lambda: self._file.read_at(size, start))
