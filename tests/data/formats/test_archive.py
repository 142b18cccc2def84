"""The errors of zipfile that are caught: each from bytes that raise it, and as a message."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from soda_dist.data.formats.archive import ZIP_ERRORS, find_packed_members, zip_members
from soda_dist.data.storage.folder import open_folder
from soda_dist.errors import UserError

CENTRAL = b"PK\x01\x02"
VERSION, NAME = 6, 46
"""Where a record of the central directory says the version needed, and its name."""


def made() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("caf\u00e9.png", b"12345")
    return out.getvalue()


def changed(offset: int, new: bytes) -> bytes:
    data = bytearray(made())
    at = data.index(CENTRAL) + offset
    data[at : at + len(new)] = new
    return bytes(data)


LISTING: dict[type[Exception], Callable[[], bytes]] = {
    zipfile.BadZipFile: lambda: changed(0, b"XX"),
    NotImplementedError: lambda: changed(VERSION, b"\xff"),
    UnicodeDecodeError: lambda: changed(NAME + 3, b"\xff"),
}


@pytest.mark.parametrize("error", LISTING)
def test_a_damaged_directory_is_a_message(error: type[Exception], tmp_path: Path) -> None:
    data = LISTING[error]()
    with pytest.raises(ZIP_ERRORS) as raised:
        zipfile.ZipFile(io.BytesIO(data))
    assert raised.type is error
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(UserError, match=r"a\.zip: got not a valid zip \(.*\); allowed: a zip as published"):
        [*zip_members(open_folder(str(tmp_path)), "a.zip")]


SIZES, PLACE = 20, 42
"""Where it says the packed size and the whole one, and the place of the member."""
MISPLACED = {
    "no header there": changed(PLACE, (3).to_bytes(4, "little")),
    "a place beyond the end": changed(PLACE, (10**6).to_bytes(4, "little")),
    "more bytes than the file": changed(SIZES, (10**6).to_bytes(4, "little") * 2),
    "two sizes of what is stored": changed(SIZES, (4).to_bytes(4, "little")),
}


@pytest.mark.parametrize("what", MISPLACED)
def test_a_member_that_is_not_where_the_zip_says(what: str, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(MISPLACED[what])
    with pytest.raises(UserError, match=r"a\.zip: got no valid café\.png at its offset; allowed: a complete zip"):
        find_packed_members(open_folder(str(tmp_path)), "a.zip", "café.png")


def test_a_stored_member_lies_where_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(made())
    (found,) = find_packed_members(open_folder(str(tmp_path)), "a.zip", "café.png")
    assert found.stored and found.length == found.size == 5
    assert made()[found.start : found.start + found.size] == b"12345"
