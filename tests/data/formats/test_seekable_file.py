"""A file of a storage as one of Python's own: any read is what the bytes say, blocks are few and read once."""

import io
import threading

import numpy as np
import pytest

from soda_dist.data.formats import seekable_file
from soda_dist.data.formats.seekable_file import SeekableFile
from soda_dist.data.storage.folder import open_folder

DATA = np.random.default_rng(0).integers(0, 256, 1003, np.uint8).tobytes()


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seekable_file, "BLOCK", 64)
    monkeypatch.setattr(seekable_file, "BLOCKS_KEPT", 3)


def test_reads_are_those_of_a_file_in_memory(any_uri: str) -> None:
    folder = open_folder(any_uri)
    folder.write("a", DATA)
    rng = np.random.default_rng(1)
    with SeekableFile(folder, "a") as file:
        expected = io.BytesIO(DATA)
        for start, count in zip(rng.integers(0, 1100, 50).tolist(), rng.integers(0, 300, 50).tolist(), strict=True):
            assert file.seek(start) == expected.seek(start)
            assert file.read(count) == expected.read(count)
            assert file.tell() == expected.tell()
        assert file.seek(-3, io.SEEK_END) == 1000
        assert file.seek(-10, io.SEEK_CUR) == 990
        assert file.read() == DATA[990:]
        assert len(file._blocks) == 3


def test_a_block_is_read_once_while_it_is_kept(any_uri: str) -> None:
    folder = open_folder(any_uri)
    folder.write("a", DATA)
    with SeekableFile(folder, "a") as file:
        file.read(10)
        kept = dict(file._blocks)
        file.seek(130)
        file.read(20)
        file.seek(0)
        assert file.read(64) == DATA[:64]
        assert [*file._blocks] == [2, 0]
        assert file._blocks[0] is kept[0]


def test_no_place_is_before_the_beginning(any_uri: str) -> None:
    folder = open_folder(any_uri)
    folder.write("a", DATA[:5])
    with SeekableFile(folder, "a") as file, pytest.raises(OSError, match="before the file's beginning"):
        file.seek(-6, io.SEEK_END)


def test_blocks_of_a_store_are_asked_for_early_where_a_file_is_read_through(
    any_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seekable_file, "AHEAD", 2)
    folder = open_folder(any_uri)
    folder.write("a", DATA)
    threads = threading.active_count()
    with SeekableFile(folder, "a", sequential=True) as file:
        assert file.read(10) == DATA[:10]
        assert sorted(file._blocks) == ([0] if folder.is_local else [0, 1, 2])
        assert file.read() == DATA[10:]
        assert len(file._blocks) == 3
        file.seek(0)
        assert file.read() == DATA
    assert threading.active_count() == threads, "a closed file leaves no threads"


def test_a_file_that_is_not_read_through_is_read_in_the_callers_thread(
    any_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """h5py calls it under a lock that any other thread may wait for, in the middle of anything: it collects garbage."""
    folder = open_folder(any_uri)
    folder.write("a", DATA)
    threads, read = [], SeekableFile._read

    def watched(file: SeekableFile, number: int) -> bytes:
        threads.append(threading.get_ident())
        return read(file, number)

    monkeypatch.setattr(SeekableFile, "_read", watched)
    with SeekableFile(folder, "a") as file:
        assert file.read() == DATA
    assert threads == [threading.get_ident()] * 16
