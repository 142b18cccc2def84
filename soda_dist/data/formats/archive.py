"""Tar and zip archives read in place from any storage.

Members of a .tar are read by offset. A .tar.gz allows no random access: it is read once to list it, and again, as far
as needed, for each selection of members. Links and names that lead out of the archive are refused; hidden members are
skipped.
"""

import gzip
import io
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from struct import Struct
from typing import NamedTuple

import pyarrow as pa

from soda_dist.data.formats.published_names import is_hidden
from soda_dist.data.formats.seekable_file import ReadOnlyFile, SeekableFile
from soda_dist.data.source import damaged_file
from soda_dist.data.storage.folder import Folder
from soda_dist.errors import UserError

BLOCK = 512
STREAM_BYTES = 8 * 2**20
"""Request size when listing small members in an object store: one request covers many headers."""
TEXT_BYTES = 2**20
"""Limit of labels and other texts that are read while listing."""
GZIP_START = b"\x1f\x8b"
ZIP_HEADER = Struct("<4sHHH4xIII HH")
"""Local header: signature, version, flags, method, checksum, sizes, and the lengths of name and extra field."""
ZIP_SIGNATURE = b"PK\3\4"
ZIP_NAME_BYTES = 512
"""Bytes read ahead for name and extra field; longer ones cost a second request."""
STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
ZIP_ERRORS = (zipfile.BadZipFile, EOFError, NotImplementedError, UnicodeDecodeError)
"""Raised by zipfile on damaged bytes: NotImplementedError for unknown versions or methods, UnicodeDecodeError for names
marked as UTF-8, EOFError if the file was truncated meanwhile."""


class PackedMember(NamedTuple):
    """A .zip member: `size` bytes at `start` of the file, which inflate to `length` bytes with CRC-32 `checksum`."""

    name: str
    start: int
    size: int
    length: int
    checksum: int
    stored: bool


class Member(NamedTuple):
    """A regular file in an archive: `size` bytes at `offset` of the outermost file.

    In a .tar.gz the offset counts in the inflated stream. In a .zip it is that of the member's header, and the size is
    the compressed size.
    """

    name: str
    offset: int
    size: int


def tar_members(folder: Folder, name: str, *, start: int = 0, size: int | None = None, small: bool) -> Iterator[Member]:
    """List the regular files of the tar in `size` bytes at `start` of the file `name`, in archive order.

    Args:
        small: read through members instead of seeking; cheaper than one request per member if they are small.

    Raises:
        UserError: not a tar, a truncated tar, or one with links or unsafe names.
    """
    for member, _ in tar_texts(folder, name, lambda _: False, start=start, size=size, small=small):
        yield member


def tar_texts(
    folder: Folder,
    name: str,
    wanted: Callable[[str], bool],
    *,
    start: int = 0,
    size: int | None = None,
    small: bool = True,
) -> Iterator[tuple[Member, bytes]]:
    """List as `tar_members` does, with the first `TEXT_BYTES` of the members whose names are `wanted`, else nothing."""
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
                        member = Member(name_inside, start + info.offset_data, info.size)
                        text = tar.extractfile(info) if wanted(name_inside) else None
                        yield member, text.read(TEXT_BYTES) if text else b""
        except tarfile.TarError as error:
            raise damaged_file(folder, name, f"not a valid tar ({error})", "an uncompressed tar") from None
        # tarfile treats a damaged header as the end; the true end is a block of zeros.
        span.seek(end)
        if span.read(BLOCK).strip(b"\0"):
            raise damaged_file(folder, name, f"a damaged header at byte {start + end}", "a complete tar")


def is_gzip(folder: Folder, name: str) -> bool:
    """Whether a file is gzip-compressed; some published .tgz files are plain tars."""
    with folder.explained(name), folder.open(name) as file:
        return file.read_at(len(GZIP_START), 0) == GZIP_START


def gzip_members(folder: Folder, name: str) -> Iterator[Member]:
    """List the regular files of a .tar.gz, in archive order; raises like `tar_members`."""
    uri = folder.file_uri(name)
    with open_tar_gz(folder, name) as stream:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            for info in tar:
                name_inside = _name(info)
                if _is_file(info, name_inside, uri):
                    yield Member(name_inside, info.offset_data, info.size)
        # Read to the end, to verify gzip's checksum. tarfile treats a damaged header as the end of the tar.
        while data := stream.read(STREAM_BYTES):
            if data.strip(b"\0"):
                raise damaged_file(folder, name, "a damaged header", "a complete tar.gz")


def read_gzip_members(folder: Folder, name: str, found: Sequence[Member]) -> list[bytes]:
    """Read members in one pass over the archive; returns all their bytes, in the given order."""
    data = [b""] * len(found)
    with open_tar_gz(folder, name) as stream:
        for at in sorted(range(len(found)), key=lambda at: found[at].offset):
            stream.seek(found[at].offset)
            data[at] = stream.read(found[at].size)
    return data


@contextmanager
def open_tar_gz(folder: Folder, name: str) -> Iterator[gzip.GzipFile]:
    """Open the inflated stream of a .tar.gz; damage found while it is open becomes a `UserError`."""
    try:
        with (
            folder.explained(name),
            SeekableFile(folder, name, sequential=True) as file,
            gzip.GzipFile(fileobj=file) as stream,
        ):
            yield stream
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise damaged_file(folder, name, f"not a valid tar.gz ({error})", "a tar.gz as published") from None


def zip_members(folder: Folder, name: str) -> Iterator[Member]:
    """List the regular files of a .zip, in archive order.

    Raises:
        UserError: not a zip, a truncated zip, or members that are links, encrypted, oddly compressed or unsafely named.
    """
    for info in _infos(folder, name):
        yield Member(info.filename, info.header_offset, info.compress_size)


def _infos(folder: Folder, name: str) -> Iterator[zipfile.ZipInfo]:
    uri = folder.file_uri(name)
    try:
        with folder.explained(name), SeekableFile(folder, name) as file, zipfile.ZipFile(file) as archive:
            found = archive.infolist()
    except ZIP_ERRORS as error:
        raise damaged_file(folder, name, f"not a valid zip ({error})", "a zip as published") from None
    for info in found:
        if info.filename.endswith("/") or is_hidden(info.filename):
            continue
        check_name(info.filename, uri)
        if stat.S_ISLNK(info.external_attr >> 16):
            raise _link(info.filename, uri)
        if info.flag_bits & 1 or info.compress_type not in (STORED, DEFLATED):
            got = f"{info.filename}, which is encrypted or compressed by method {info.compress_type}"
            raise UserError(uri, got, "members that are stored or deflated", "unpack it and give the folder")
        if info.header_offset < 0:
            raise damaged_file(folder, name, f"no valid offset of {info.filename}", "a complete zip")
        yield info


def find_packed_members(folder: Folder, name: str, base: str) -> list[PackedMember]:
    """Locate the files of a .zip named `base` in any folder; raises like `zip_members` and `locate_packed`."""
    infos = [*_infos(folder, name)]  # check all names first
    return [locate_packed(folder, name, info) for info in infos if info.filename.rpartition("/")[2] == base]


def locate_packed(folder: Folder, name: str, info: zipfile.ZipInfo) -> PackedMember:
    """Locate the bytes of a .zip member; a `UserError` if the file cannot hold them."""
    with folder.explained(name), folder.open(name) as file:
        header = file.read_at(ZIP_HEADER.size, info.header_offset)
        known = len(header) == ZIP_HEADER.size and header.startswith(ZIP_SIGNATURE)
        start = info.header_offset + ZIP_HEADER.size + sum(ZIP_HEADER.unpack(header)[-2:]) if known else 0
        size, stored = info.compress_size, info.compress_type == STORED
        if not known or start + size > file.size() or (stored and size != info.file_size):
            raise damaged_file(folder, name, f"no valid {info.filename} at its offset", "a complete zip")
    return PackedMember(info.filename, start, size, info.file_size, info.CRC, stored)


def read_zip_member(file: pa.NativeFile, member: Member, most: int) -> bytes | None:
    """Read a member, up to about `most` bytes; None if it is damaged or truncated."""
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
    known = not flags & 8  # otherwise the checksum follows the member
    return content if whole and not (known and zlib.crc32(content) != checksum) else None


def _name(info: tarfile.TarInfo) -> str:
    """A member's name, with bytes that are not UTF-8 escaped."""
    return info.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _is_file(info: tarfile.TarInfo, name: str, uri: str) -> bool:
    if is_hidden(name):
        return False
    if info.issym() or info.islnk():
        raise _link(name, uri)
    if name or not info.isdir():  # an unnamed folder is the root
        check_name(name, uri)
    return info.isreg()


def check_name(name: str, uri: str) -> None:
    """Raise a `UserError` for `uri` if a name in it is empty or leads out of the folder."""
    if not name or name.startswith("/") or ".." in name.split("/") or "\0" in name:
        got = f"the member {name or 'without a name'}"
        raise UserError(uri, got, "names below the archive's root", "download it from its publishers")


def _link(name: str, uri: str) -> UserError:
    return UserError(uri, f"a link, {name}", "files and folders", "unpack it and give the folder")


class _Span(ReadOnlyFile):
    """A byte range of a file, as a file."""

    def __init__(self, file: pa.NativeFile, start: int, size: int) -> None:
        super().__init__(min(size, file.size() - start))
        self._file, self._start = file, start

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = max(0, min(len(buffer), self._size - self._at))
        data = self._file.read_at(count, self._start + self._at) if count else b""
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
