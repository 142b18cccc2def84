"""Some bytes of a file, as a file: places begin at its start, and nothing beyond its end is read."""

import pickle

import pytest

from soda_dist.data.formats.byte_range import ByteRange
from soda_dist.data.storage.folder import open_folder

DATA = bytes(range(100))


@pytest.mark.parametrize(("start", "length"), [(0, None), (0, 30), (20, 30), (20, None), (90, 50), (100, 5), (120, 9)])
def test_a_stretch_is_a_slice(start: int, length: int | None, any_uri: str) -> None:
    folder = open_folder(any_uri)
    folder.write("a", DATA)
    stretch = pickle.loads(pickle.dumps(ByteRange(folder, "a", start, length)))
    assert stretch.uri == f"{any_uri}/a"
    expected = DATA[start : None if length is None else start + length]
    with stretch.opened() as window:
        assert window.size() == len(expected)
        for at in (0, 1, 29, 35, 99):
            for count in (0, 1, 10, 200):
                assert window.read_at(count, at) == expected[at : at + count]


def test_a_missing_file_is_named(any_uri: str) -> None:
    with pytest.raises(FileNotFoundError, match="none"), ByteRange(open_folder(any_uri), "none").opened():
        pass
