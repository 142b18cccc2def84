"""A file of any storage as one of Python's own, for libraries that seek: zipfile, gzip, h5py."""

import errno
import io
from collections import OrderedDict

from soda_dist.data.storage import Folder

BLOCK = 2**20
BLOCKS_KEPT = 32


class SeekableFile(io.RawIOBase):
    """A file that is read by blocks of a mebibyte, the last ones kept: in an object store each block is a request.

    Reads are whole: short only at the end of the file. It belongs to one thread.
    """

    def __init__(self, folder: Folder, name: str) -> None:
        self._file = folder.open(name)
        self._size, self._at = self._file.size(), 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

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
            self._file.close()
        super().close()

    def _block(self, number: int) -> bytes:
        if number in self._blocks:
            self._blocks.move_to_end(number)
        else:
            self._blocks[number] = self._file.read_at(min(BLOCK, self._size - number * BLOCK), number * BLOCK)
            if len(self._blocks) > BLOCKS_KEPT:
                self._blocks.popitem(last=False)
        return self._blocks[number]
