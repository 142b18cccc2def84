"""A deflated member read from points: any place is what zipfile says, on any storage, and damage is a message."""

import errno
import io
import random
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from soda_dist.data.formats import deflate_seek, seekable_file
from soda_dist.data.formats.archive import find_packed_members
from soda_dist.data.formats.deflate_seek import DeflatedMember
from soda_dist.data.formats.seekable_file import SeekableFile
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.errors import UserError

RNG = np.random.default_rng(0)
DATA = b"".join(RNG.integers(0, 2 ** int(bits), 50_000, np.uint8).tobytes() for bits in RNG.integers(1, 9, 30))
"""1.5 MB that deflate packs well in places, and not at all in others."""


@pytest.fixture(autouse=True)
def near_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deflate_seek, "MIN_SPACING", 2**16)
    monkeypatch.setattr(seekable_file, "BLOCK", 30_000)


def zipped(data: bytes, extra: bytes = b"") -> bytes:
    """Behind another member, with an extra field as Info-ZIP writes them."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("first", b"first" * 100)
        info = zipfile.ZipInfo("data")
        info.compress_type, info.extra = zipfile.ZIP_DEFLATED, extra
        archive.writestr(info, data)
    return sink.getvalue()


def member(folder: Folder, data: bytes = DATA) -> DeflatedMember:
    folder.write("a.zip", zipped(data, b"UT\x05\0\3abcd"))
    (found,) = find_packed_members(folder, "a.zip", "data")
    assert not found.stored and found.length == len(data)
    return DeflatedMember(folder, "a.zip", found)


def through(found: DeflatedMember) -> bytes:
    with found.opened(found.points()) as blocks:
        return b"".join(blocks.all())


def test_any_place_and_all_of_it(any_uri: str) -> None:
    found = member(open_folder(any_uri))
    points = found.points()
    draw = random.Random(0)
    with found.opened(points) as blocks:
        assert len([*blocks.all()]) > 10, "blocks between points"
        assert b"".join(blocks.all()) == DATA
        assert blocks.size() == len(DATA)
        for _ in range(40):
            at, count = draw.randrange(len(DATA) + 100), draw.choice([0, 1, 1000, 300_000])
            assert blocks.read_at(count, at) == DATA[at : at + count]


def test_a_reader_inflates_the_block_it_is_asked_for_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = member(open_folder(str(tmp_path)))
    points = found.points()
    with found.opened(points) as blocks:
        starts = blocks._starts
        read, asked = blocks._read, []
        monkeypatch.setattr(blocks, "_read", lambda *span: asked.append(span) or read(*span))
        at = len(starts) // 2
        for place in range(starts[at], starts[at + 1] - 500, 1000):
            blocks.read_at(500, place)
        assert asked == [(starts[at], starts[at + 1])]
        before = blocks._member.packed.start + found.packed.size // 4
        assert min(blocks._raw.fileobj()._file._blocks) * 30_000 > before, "nor are the bytes before it read"


def test_points_are_few_for_any_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deflate_seek, "POINTS", 4)
    found = member(open_folder(str(tmp_path)))
    with found.opened(found.points()) as blocks:
        assert 2 < len(blocks._starts) <= 6
        assert b"".join(blocks.all()) == DATA


@pytest.mark.parametrize("data", [b"", b"a", bytes(10**6)])
def test_small_and_dense_members(data: bytes, tmp_path: Path) -> None:
    assert through(member(open_folder(str(tmp_path)), data)) == data


def test_a_zip_that_lies_is_found_out(tmp_path: Path) -> None:
    found = member(open_folder(str(tmp_path)))
    size, length = found.packed.size, found.packed.length
    for lie, got in (
        ({"length": length + 1}, r"an end before byte 1,500,001"),
        ({"length": 2 * length}, r"an end before byte 3,000,000"),
        ({"length": length - 1}, "a wrong checksum"),
        ({"length": length // 3}, "a wrong checksum"),
        ({"length": 2**50}, r"[\d,]+ bytes for 1,125,899,906,842,624"),
        ({"checksum": 1}, "a wrong checksum"),
        ({"size": size // 2}, r"an end before byte [\d,]+|bytes that cannot be inflated"),
        ({"size": size - 100}, r"an end before byte [\d,]+|bytes that cannot be inflated"),
    ):
        with pytest.raises(UserError, match=rf"a\.zip: data: got ({got}); allowed: a zip as published"):
            through(replace(found, packed=found.packed._replace(**lie)))


def test_a_damaged_byte_is_found_wherever_it_is(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    found, good = member(folder), folder.read("a.zip")
    draw = random.Random(0)
    last = found.packed.size - 5  # behind it may be nothing but the end mark, with all bytes there and checked
    for at in [0, 1, last, *(draw.randrange(last) for _ in range(30))]:
        data = bytearray(good)
        data[found.packed.start + at] ^= 0xFF
        folder.write("a.zip", data)
        with pytest.raises(UserError, match=r"a\.zip: data: got"):
            through(found)


def test_a_file_that_is_gone_or_cut_meanwhile(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    found, points = member(folder), member(folder).points()
    good = folder.read("a.zip")
    folder.write("a.zip", good[: len(good) // 2])
    with pytest.raises(UserError, match=r"a\.zip: data: got"), found.opened(points) as blocks:
        b"".join(blocks.all())
    folder.remove("a.zip")
    with pytest.raises(FileNotFoundError), found.opened(points):
        pass


def test_a_disk_that_fails_is_not_called_a_damaged_zip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = member(open_folder(str(tmp_path)))
    points = found.points()

    def fails(file: SeekableFile, number: int) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(SeekableFile, "_block", fails)
    with pytest.raises(OSError, match="Input/output error"), found.opened(points) as blocks:
        blocks.read_at(10, 0)
