"""Tar and zip archives read in place, from any storage, without unpacking.

Members of a .tar are found by their place. A .tar.gz can only be read on from its beginning: it is read once to list
it, and once more, as far as is needed, for each selection of members. Links and names that lead out of the archive are
refused.
"""

import gzip
import io
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from struct import Struct
from typing import NamedTuple

import pyarrow as pa

from soda_dist.data.formats.seekable_file import SeekableFile
from soda_dist.data.storage.folder import Folder
from soda_dist.errors import UserError

BLOCK = 512
STREAM_BYTES = 8 * 2**20
"""Bytes an object store is asked for at a time when small members are listed: one request for many headers."""
GZIP_START = b"\x1f\x8b"
ZIP_HEADER = Struct("<4sHHH4xIII HH")
"""Of a member: signature, version, flags, method, checksum, sizes, and the lengths of name and extra field."""
ZIP_SIGNATURE = b"PK\3\4"
ZIP_NAME_BYTES = 512
"""Read along with a member for its name and extra field: nearly always enough, else they cost a request more."""
STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
ZIP_ERRORS = (zipfile.BadZipFile, EOFError, NotImplementedError, UnicodeDecodeError)
"""What comes of damaged bytes: zipfile's BadZipFile for what it checks, its NotImplementedError of a version or method
that it does not know, UnicodeDecodeError of a name marked as UTF-8, and EOFError of a file that became shorter."""


class Packed(NamedTuple):
    """A member of a .zip: its bytes lie at `start` of the file, and inflate to `length` bytes with this CRC-32."""

    name: str
    start: int
    size: int
    length: int
    checksum: int
    stored: bool


class Member(NamedTuple):
    """A regular file inside an archive: its bytes lie at `offset` of the outermost file.

    In a .tar.gz the offset is one of the inflated stream; in a .zip it is that of the member's header, and the size is
    the compressed one.
    """

    name: str
    offset: int
    size: int


def members(folder: Folder, name: str, *, start: int = 0, size: int | None = None, small: bool) -> Iterator[Member]:
    """The regular files of the tar that lies in `size` bytes from `start` on of the file `name`, in its order.

    Args:
        small: whether the members are small, so that reading through them costs less than a request each.

    Raises:
        UserError: not a tar, one that ends too early, or one with links or unsafe names.
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
                    name_inside = _name(info)
                    if _is_file(info, name_inside, uri):
                        yield Member(name_inside, start + info.offset_data, info.size)
        except tarfile.TarError as error:
            raise UserError(uri, f"not a whole tar ({error})", "an uncompressed tar", "download it again") from None
        # tarfile takes a damaged header for the end; the true end is a block of zeros.
        span.seek(end)
        if span.read(BLOCK).strip(b"\0"):
            raise UserError(uri, f"a damaged header at byte {start + end}", "a whole tar", "download it again")


def is_gzip(folder: Folder, name: str) -> bool:
    """Whether a file is compressed; a published .tgz may be a plain tar, whatever its name says."""
    with folder.explained(name), folder.open(name) as file:
        return file.read_at(len(GZIP_START), 0) == GZIP_START


def gzip_members(folder: Folder, name: str) -> Iterator[Member]:
    """The regular files of a .tar.gz, in its order. Raises as `members` does."""
    uri = folder.file_uri(name)
    with _inflated(folder, name) as stream:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            for info in tar:
                name_inside = _name(info)
                if _is_file(info, name_inside, uri):
                    yield Member(name_inside, info.offset_data, info.size)
        # To the end, where gzip keeps its checksum. tarfile takes a damaged header for the end of the tar.
        while data := stream.read(STREAM_BYTES):
            if data.strip(b"\0"):
                raise UserError(uri, "a damaged header", "a whole tar.gz", "download it again")


def read_gzip_members(folder: Folder, name: str, found: Sequence[Member]) -> list[bytes]:
    """The bytes of members, in the order given, in one pass over the archive. All of them are held."""
    data = [b""] * len(found)
    with _inflated(folder, name) as stream:
        for at in sorted(range(len(found)), key=lambda at: found[at].offset):
            stream.seek(found[at].offset)
            data[at] = stream.read(found[at].size)
    return data


@contextmanager
def _inflated(folder: Folder, name: str) -> Iterator[gzip.GzipFile]:
    try:
        with (
            folder.explained(name),
            SeekableFile(folder, name, sequential=True) as file,
            gzip.GzipFile(fileobj=file) as stream,
        ):
            yield stream
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        got = f"not a whole tar.gz ({error})"
        raise UserError(folder.file_uri(name), got, "a tar.gz as published", "download it again") from None


def zip_members(folder: Folder, name: str) -> Iterator[Member]:
    """The regular files of a .zip, in its order.

    Raises:
        UserError: not a zip, one that ends too early, or members that are links, encrypted, oddly compressed or unsafe.
    """
    for info in _infos(folder, name):
        yield Member(info.filename, info.header_offset, info.compress_size)


def _infos(folder: Folder, name: str) -> Iterator[zipfile.ZipInfo]:
    uri = folder.file_uri(name)
    try:
        with folder.explained(name), SeekableFile(folder, name) as file, zipfile.ZipFile(file) as archive:
            found = archive.infolist()
    except ZIP_ERRORS as error:
        raise UserError(uri, f"not a whole zip ({error})", "a zip as published", "download it again") from None
    for info in found:
        if info.filename.endswith("/"):
            continue
        check_name(info.filename, uri)
        if stat.S_ISLNK(info.external_attr >> 16):
            raise _link(info.filename, uri)
        if info.flag_bits & 1 or info.compress_type not in (STORED, DEFLATED):
            got = f"{info.filename}, which is encrypted or compressed by method {info.compress_type}"
            raise UserError(uri, got, "members that are stored or deflated", "unpack it, and name the folder")
        if info.header_offset < 0:
            raise UserError(uri, f"no place of {info.filename}", "a whole zip", "download it again")
        yield info


def packed_members(folder: Folder, name: str, base: str) -> list[Packed]:
    """The regular files of a .zip whose own name, without folders, is `base`, with all that is known of them.

    Raises:
        UserError: as `zip_members`, and for a member whose bytes cannot be where the zip says.
    """
    infos = [info for info in _infos(folder, name) if info.filename.rpartition("/")[2] == base]
    return [packed(folder, name, info) for info in infos]


def packed(folder: Folder, name: str, info: zipfile.ZipInfo) -> Packed:
    """Where the bytes of a member of a .zip lie; a `UserError` if they cannot be there."""
    with folder.explained(name), folder.open(name) as file:
        header = file.read_at(ZIP_HEADER.size, info.header_offset)
        known = len(header) == ZIP_HEADER.size and header.startswith(ZIP_SIGNATURE)
        start = info.header_offset + ZIP_HEADER.size + sum(ZIP_HEADER.unpack(header)[-2:]) if known else 0
        size, stored = info.compress_size, info.compress_type == STORED
        if not known or start + size > file.size() or (stored and size != info.file_size):
            uri = folder.file_uri(name)
            raise UserError(uri, f"no whole {info.filename} where it should be", "a whole zip", "download it again")
    return Packed(info.filename, start, size, info.file_size, info.CRC, stored)


def read_zip_member(file: pa.NativeFile, member: Member, most: int) -> bytes | None:
    """A member's bytes, at most about `most` of them; None if they are damaged or cut."""
    data = file.read_at(ZIP_HEADER.size + ZIP_NAME_BYTES + member.size, member.offset)
    if len(data) < ZIP_HEADER.size:
        return None
    signature, _, flags, method, checksum, _, _, *lengths = ZIP_HEADER.unpack_from(data)
    start = ZIP_HEADER.size + sum(lengths)
    if signature != ZIP_SIGNATURE:
        return None
    if len(data) < start + member.size:
        data = file.read_at(start + member.size, member.offset)
    packed = data[start : start + member.size]
    try:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        content = packed if method == STORED else inflater.decompress(packed, most)
    except zlib.error:
        return None
    whole = len(packed) == member.size and (method == STORED or inflater.eof)
    known = not flags & 8  # else the checksum follows the member
    return content if whole and not (known and zlib.crc32(content) != checksum) else None


def _name(info: tarfile.TarInfo) -> str:
    """A member's name; of bytes that are not UTF-8, which no list and no message can hold, what Python writes."""
    return info.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _is_file(info: tarfile.TarInfo, name: str, uri: str) -> bool:
    if info.issym() or info.islnk():
        raise _link(name, uri)
    if name or not info.isdir():  # without a name it is the root
        check_name(name, uri)
    return info.isreg()


def check_name(name: str, uri: str) -> None:
    """A `UserError` of `uri` if a name that it tells leads elsewhere, or nowhere."""
    if not name or name.startswith("/") or ".." in name.split("/") or "\0" in name:
        raise UserError(
            uri,
            f"the member {name or 'without a name'}",
            "names below the archive's root",
            "download it from its publishers",
        )


def _link(name: str, uri: str) -> UserError:
    return UserError(uri, f"a link, {name}", "files and folders", "unpack it, and name the folder")


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
