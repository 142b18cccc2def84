"""Random access to a large deflated .zip member, without unpacking it.

Deflate data can be inflated only from its start, or from a point for which the preceding 32 KiB are known. One pass
over the member records such points; any machine can then inflate the block between two of them. indexed_gzip provides
the points: it reads gzip files (RFC 1952), so the member is wrapped in a gzip header and trailer. Python's zlib cannot
start within a byte, where points may lie.
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

from soda_dist.data.formats.archive import PackedMember
from soda_dist.data.formats.seekable_file import BLOCK, ReadOnlyFile, SeekableFile
from soda_dist.data.storage.folder import Folder
from soda_dist.errors import UserError

HEADER = b"\x1f\x8b\x08" + bytes(6) + b"\xff"
"""Gzip header: deflate, no flags, no time, unknown system."""
POINTS, MIN_SPACING = 1024, 4 * 2**20
"""Most points per member (32 MiB in total), and the least bytes between two."""
MAX_RATIO = 1032
"""Highest compression ratio of deflate (https://zlib.net/zlib_tech.html)."""


@dataclass(frozen=True)
class DeflatedMember:
    """A deflated .zip member. Picklable."""

    folder: Folder
    name: str
    packed: PackedMember

    @property
    def uri(self) -> str:
        return f"{self.folder.file_uri(self.name)}: {self.packed.name}"

    def points(self) -> bytes:
        """Find the points in one pass, in indexed_gzip's format; a `UserError` if the member is damaged."""
        if self.packed.length > MAX_RATIO * self.packed.size:
            raise self.damaged(f"{self.packed.size:,} bytes for {self.packed.length:,}")
        spacing, found = max(MIN_SPACING, self.packed.length // POINTS), io.BytesIO()
        with self._opened(spacing) as file:
            with self.translated_errors():
                file.raw.seek(self.packed.length)  # no further, even if the zip states a wrong length
            file.export_index(fileobj=found)
        return found.getvalue()

    @contextmanager
    def opened(self, points: bytes) -> Iterator["Blocks"]:
        """Open it for mostly sequential reads."""
        with self._opened() as file:
            file.import_index(fileobj=io.BytesIO(points))
            yield Blocks(self, file)

    @contextmanager
    def translated_errors(self) -> Iterator[None]:
        """Turn indexed_gzip's ZranError into the storage error that caused it, or into a `UserError`."""
        try:
            yield
        except indexed_gzip.ZranError as error:
            cause = error.__cause__
            if isinstance(cause, (OSError, UserError)) and not isinstance(cause, indexed_gzip.ZranError):
                raise cause from None
            raise self.damaged("bytes that cannot be inflated") from None

    def damaged(self, got: str) -> UserError:
        """Make the error for damaged bytes."""
        return UserError(self.uri, got, "a zip as published", "download it again")

    @contextmanager
    def _opened(self, spacing: int = MIN_SPACING) -> Iterator[indexed_gzip.IndexedGzipFile]:
        # indexed_gzip checks the CRC only for some access patterns; `Blocks.all` does it instead.
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
    """The inflated bytes, read in blocks between two points; caches the last block."""

    def __init__(self, member: DeflatedMember, file: indexed_gzip.IndexedGzipFile) -> None:
        self._member, self._raw = member, file.raw
        self._starts = [0, *(p for p, _ in file.seek_points() if 0 < p < self.size()), self.size()]
        self._number, self._block, self._lock = -1, bytearray(), Lock()

    def size(self) -> int:
        return self._member.packed.length

    def read_at(self, size: int, offset: int, /) -> bytes:
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
        """Yield all blocks in order; a `UserError` at the end if the checksum differs."""
        checksum = 0
        for start, stop in pairwise(self._starts):
            block = self._read(start, stop)
            checksum = zlib.crc32(block, checksum)
            yield block
        if checksum != self._member.packed.checksum:
            raise self._member.damaged("a wrong checksum")

    def _read(self, start: int, stop: int) -> bytearray:
        # One call per block: each read inflates from the point before it.
        block = bytearray(stop - start)
        with self._member.translated_errors():
            self._raw.seek(start)
            count = self._raw.readinto(block)
        if count != len(block):
            raise self._member.damaged(f"an end before byte {stop:,}")
        return block


class _Gzip(ReadOnlyFile):
    """The member as a gzip file."""

    def __init__(self, file: SeekableFile, packed: PackedMember) -> None:
        self._file, self._packed = file, packed
        self._end = struct.pack("<II", packed.checksum, packed.length % 2**32)
        super().__init__(len(HEADER) + packed.size + len(self._end))

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
        if at < self._packed.size:
            self._file.seek(self._packed.start + at)
            return self._file.read(min(most, self._packed.size - at))
        return self._end[at - self._packed.size :][:most]
