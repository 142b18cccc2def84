"""A large deflated member of a .zip, read at any place without unpacking it.

What deflate packed can only be read on from its beginning, or from a point where the 32 KiB before it are known. One
pass over the member finds such points, and each block between two of them can then be inflated by itself, on any
machine. The points are those of indexed_gzip, which reads gzip files (RFC 1952): the member is shown to it as one,
between a gzip header, and checksum and length as gzip keeps them. Python's own zlib cannot begin within a byte, which
is where a point may lie.
"""

import io
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from threading import Lock

import indexed_gzip

from soda_dist.data.formats.archive import Packed
from soda_dist.data.formats.seekable_file import BLOCK, SeekableFile
from soda_dist.data.storage.folder import Folder
from soda_dist.errors import UserError

HEADER = b"\x1f\x8b\x08" + bytes(6) + b"\xff"
"""Deflate, no flags, no time, an unknown system."""
POINTS, LEAST_SPACING = 1024, 4 * 2**20
"""Of a member at most so many points, 32 MiB in all, and at least so many bytes between two."""

DENSEST = 1032
"""Bytes that deflate packs in one (https://zlib.net/zlib_tech.html)."""


@dataclass(frozen=True)
class Inflated:
    """A deflated member. Picklable."""

    folder: Folder
    name: str
    packed: Packed

    @property
    def uri(self) -> str:
        """How messages name it."""
        return f"{self.folder.file_uri(self.name)}: {self.packed.name}"

    def points(self) -> bytes:
        """Where it can be read from, by one pass over it; a `UserError` if it cannot be inflated."""
        if self.packed.length > DENSEST * self.packed.size:
            raise self.damaged(f"{self.packed.size:,} bytes for {self.packed.length:,}")
        spacing, found = max(LEAST_SPACING, self.packed.length // POINTS), io.BytesIO()
        with self._opened(spacing) as file:
            with self.inflating():
                file.raw.seek(self.packed.length)  # no further, whatever a zip that lies holds
            file.export_index(fileobj=found)
        return found.getvalue()

    @contextmanager
    def opened(self, points: bytes) -> Iterator["Blocks"]:
        """To be read, by one thread at a time; fast where places follow one another."""
        with self._opened() as file:
            file.import_index(fileobj=io.BytesIO(points))
            yield Blocks(self, file)

    @contextmanager
    def inflating(self) -> Iterator[None]:
        """Turns indexed_gzip's error, an OSError of its own, into what it is: one of the storage, or damaged bytes."""
        try:
            yield
        except indexed_gzip.ZranError as error:
            cause = error.__cause__
            if isinstance(cause, (OSError, UserError)) and not isinstance(cause, indexed_gzip.ZranError):
                raise cause from None
            raise self.damaged("bytes that cannot be inflated") from None

    def damaged(self, got: str) -> UserError:
        """A mistake in its bytes."""
        return UserError(self.uri, got, "a zip as published", "download it again")

    @contextmanager
    def _opened(self, spacing: int = LEAST_SPACING) -> Iterator[indexed_gzip.IndexedGzipFile]:
        # It checks the checksum in some ways of reading only, so that is left to `Blocks.all`.
        with (
            self.folder.explained(self.name),
            SeekableFile(self.folder, self.name, sequential=True) as file,
            indexed_gzip.IndexedGzipFile(
                fileobj=_Gzip(file, self.packed),
                spacing=spacing,
                readbuf_size=BLOCK,
                buffer_size=BLOCK,
                skip_crc_check=True,
            ) as stream,
        ):
            yield stream


class Blocks:
    """The inflated bytes, by blocks between two points, of which the last one read is kept."""

    def __init__(self, inflated: Inflated, file: indexed_gzip.IndexedGzipFile) -> None:
        self._inflated, self._raw = inflated, file.raw
        self._starts = [0, *(p for p, _ in file.seek_points() if 0 < p < self.size()), self.size()]
        self._number, self._block, self._lock = -1, bytearray(), Lock()

    def size(self) -> int:
        """Bytes in all."""
        return self._inflated.packed.length

    def read_at(self, size: int, offset: int, /) -> bytes:
        """Bytes from a place on, as many as there are."""
        pieces = []
        while size > 0 and offset < self.size():
            number = bisect_right(self._starts, offset) - 1
            with self._lock:
                if number != self._number:
                    self._number, self._block = number, self._read(self._starts[number], self._starts[number + 1])
                at = offset - self._starts[number]
                pieces.append(self._block[at : at + size])
            offset, size = offset + len(pieces[-1]), size - len(pieces[-1])
        return b"".join(pieces)

    def all(self) -> Iterator[bytearray]:
        """Every block, in order; at the end a `UserError` if they are not what was packed."""
        checksum = 0
        for start, stop in pairwise(self._starts):
            block = self._read(start, stop)
            checksum = zlib.crc32(block, checksum)
            yield block
        if checksum != self._inflated.packed.checksum:
            raise self._inflated.damaged("other bytes than were packed")

    def _read(self, start: int, stop: int) -> bytearray:
        """In one call: each begins at the point before its place, and inflates from there."""
        block = bytearray(stop - start)
        with self._inflated.inflating():
            self._raw.seek(start)
            count = self._raw.readinto(block)
        if count != len(block):
            raise self._inflated.damaged(f"an end before byte {stop:,}")
        return block


class _Gzip(io.RawIOBase):
    """The member as a gzip file."""

    def __init__(self, file: SeekableFile, packed: Packed) -> None:
        self._file, self._start, self._size, self._at = file, packed.start, packed.size, 0
        self._end = struct.pack("<II", packed.checksum, packed.length % 2**32)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        whole = len(HEADER) + self._size + len(self._end)
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: whole}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        done = 0
        while piece := self._piece(len(buffer) - done):
            buffer[done : done + len(piece)] = piece
            done += len(piece)
            self._at += len(piece)
        return done

    def _piece(self, most: int) -> bytes:
        at = self._at - len(HEADER)
        if at < 0:
            return HEADER[at:][:most]
        if at < self._size:
            self._file.seek(self._start + at)
            return self._file.read(min(most, self._size - at))
        return self._end[at - self._size :][:most]
