"""SmallNORB's matrices, zipped and unpacked: splits without common toys, factors, the order of an object's views."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.errors import UserError
from tests.data.written import smallnorb
from tests.data.written.importing import decoded, index_of, opened, rows_of

TRAIN, TEST = (f"{name}-dat.mat" for name in smallnorb.NAMES.values())
ORDER = [4, 2, 0, 1, 5, 3]
"""The training records by category, instance, lighting, elevation and azimuth."""


@pytest.mark.parametrize(("write", "suffix"), [(smallnorb.write, ".gz"), (smallnorb.write_plain, "")])
def test_one_camera_is_table_10s_data_set(write: Callable[[Folder], None], suffix: str, source_uri: str) -> None:
    write(open_folder(source_uri))
    source = opened("smallnorb", source_uri)
    rows = rows_of(source, "train")
    assert [row.name for row in rows] == [f"{TRAIN}{suffix}#{record}/left" for record in ORDER]
    for row, record in zip(rows, ORDER, strict=True):
        assert np.array_equal(decoded(row.image), smallnorb.image("train", record, 0))
    assert max(decoded(rows[0].image).ravel()) == 255
    first = {"category": 0, "elevation": 3, "azimuth": 1, "lighting": 1, "object": 4}
    assert rows[0].columns == first
    assert [row.columns["object"] for row in rows] == [4, 4, 4, 19, 19, 46]
    assert [row.columns["azimuth"] for row in rows] == [1, 1, 17, 0, 9, 10]
    assert [row.columns["object"] for row in rows_of(source, "test")] == [20, 35]
    assert not source.contents.shuffled


def test_factors_and_their_names(tmp_path: Path) -> None:
    smallnorb.write(open_folder(str(tmp_path)))
    labels = opened("smallnorb", str(tmp_path)).contents.labels
    assert {name: len(label.names) for name, label in labels.items()} == {
        "category": 5,
        "elevation": 9,
        "azimuth": 18,
        "lighting": 6,
    }
    assert {label.kind for label in labels.values()} == {"factor"}
    assert labels["category"].names == ("animal", "human", "airplane", "truck", "car")
    assert labels["elevation"].names[::8] == ("30 degrees", "70 degrees")
    assert labels["azimuth"].names[::17] == ("0 degrees", "340 degrees")


def test_both_cameras_and_objects_under_one_light(tmp_path: Path) -> None:
    smallnorb.write_plain(open_folder(str(tmp_path)))
    source = opened("smallnorb", str(tmp_path), "cameras=both", "same_lighting=true")
    rows = rows_of(source, "train")
    assert source.contents.labels["camera"].names == ("left", "right")
    assert [row.name for row in rows[:3]] == [f"{TRAIN}#4/left", f"{TRAIN}#4/right", f"{TRAIN}#2/left"]
    assert np.array_equal(decoded(rows[1].image), smallnorb.image("train", 4, 1))
    assert [row.columns["camera"] for row in rows] == [0, 1] * 6
    # Toy 4 of category 0 under lights 1, 5 and 5: (10 * 0 + 4) * 6 + light.
    assert [row.columns["object"] for row in rows[::2]] == [25, 29, 29, 19 * 6, 19 * 6, 46 * 6 + 3]


@pytest.mark.parametrize("write", [smallnorb.write, smallnorb.write_plain])
def test_rows_come_in_the_order_of_any_index(write: Callable[[Folder], None], tmp_path: Path) -> None:
    write(open_folder(str(tmp_path)))
    order = [5, 0, 3, 3, 1, 2, 0]
    rows = rows_of(opened("smallnorb", str(tmp_path)), "train", order)
    for row, place in zip(rows, order, strict=True):
        assert np.array_equal(decoded(row.image), smallnorb.image("train", ORDER[place], 0))


def test_numbers_that_there_are_not_are_rows_with_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = [(5, 0, 0, 0, 0), (0, 10, 0, 0, 0), (0, 1, 9, 0, 0), (0, 1, 0, 3, 0), (0, 1, 0, 36, 0), (0, 1, 0, 0, -1)]
    monkeypatch.setitem(smallnorb.RECORDS, "test", [*bad, (0, 1, 0, 0, 0)])
    smallnorb.write(open_folder(str(tmp_path)))
    found = {row.name.partition("#")[2]: row.problem for row in rows_of(opened("smallnorb", str(tmp_path)), "test")}
    whats = ["category 5", "instance 10", "elevation 9", "azimuth 3", "azimuth 36", "lighting -1"]
    assert [found[f"{row}/left"] for row in range(7)] == [*(f"an unknown {what}" for what in whats), None]


def test_a_zipped_file_whose_values_end_early(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    smallnorb.write(folder)
    whole = smallnorb.matrices("train")[TRAIN]
    folder.write(f"{TRAIN}.gz", gzip.compress(whole[:-10000]))
    problems = [row.problem for row in rows_of(opened("smallnorb", str(tmp_path)), "train")]
    assert problems == [None, None, None, None, "a truncated record", None]
    folder.write(f"{TRAIN}.gz", gzip.compress(whole)[:-10000])
    with pytest.raises(UserError, match=rf"{TRAIN}\.gz: got not a valid gzip file"):
        rows_of(opened("smallnorb", str(tmp_path)), "train")


CAT, INFO = TRAIN.replace("dat", "cat"), TRAIN.replace("dat", "info")
GOOD = smallnorb.matrices("train")


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        (TRAIN, GOOD[TRAIN][:-1], r"-dat\.mat: got \d+ bytes; allowed: 110616, as in its header"),
        (TRAIN, b"\x00" * 100, r"-dat\.mat: got no matrix header"),
        (TRAIN, GOOD[TRAIN][:12], r"-dat\.mat: got a truncated header"),
        (TRAIN, b"", r"-dat\.mat: got no matrix header"),
        (TRAIN, smallnorb.matrix("B", [6, -2, 96, 96], b""), r"got dimensions \[6, -2, 96, 96\]"),
        (TRAIN, smallnorb.matrix("i", [6, 2, 96, 96], b""), r"got int32 \[6, 2, 96, 96\]; allowed: bytes"),
        (TRAIN, smallnorb.matrix("B", [6, 96, 96], b""), r"got uint8 \[6, 96, 96\]; allowed: bytes"),
        (TRAIN, smallnorb.matrix("B", [6, 2, 1, 2**16 + 1], b""), r"got uint8 \[6, 2, 1, 65537\]; allowed: bytes"),
        (CAT, smallnorb.matrix("i", [5], b"\0" * 20), r"-cat\.mat: got int32 \[5\]; allowed: int32 \[6\]"),
        (CAT, GOOD[CAT][:-1], r"-cat\.mat: got 23 bytes of numbers; allowed: 24"),
        (INFO, smallnorb.matrix("B", [6, 4], b"\0" * 24), r"-info\.mat: got uint8 \[6, 4\]; allowed: int32 \[6, 4\]"),
        (INFO, struct.pack("<Ii", 0x1E3D4C54, 9), r"-info\.mat: got no matrix header"),
    ],
)
def test_files_that_are_not_as_published(name: str, data: bytes, says: str, tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    smallnorb.write_plain(folder)
    folder.write(name, data)
    with pytest.raises(UserError, match=says):
        index_of(opened("smallnorb", str(tmp_path)), "train")


def test_a_missing_file(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    smallnorb.write(folder)
    folder.remove(f"{TEST.replace('dat', 'info')}.gz")
    with pytest.raises(UserError, match=r"got no smallnorb-5x01235x9x18x6x2x96x96-testing-info\.mat\[\.gz\]"):
        opened("smallnorb", str(tmp_path))
