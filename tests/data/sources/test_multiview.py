"""Folders of posed images: splits by object, cameras that see a dot where it is, mistakes in one line."""

import copy
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from soda_dist.data.source import check_image
from soda_dist.data.storage.folder import open_folder
from soda_dist.errors import UserError
from tests.data.written import multiview
from tests.data.written.importing import decoded, index_of, opened, rows_of, seen_at

SPLITS = ("train", "val", "test")


def test_splits_labels_and_cameras(source_uri: str) -> None:
    folder = open_folder(source_uri)
    multiview.write(folder)
    multiview.write_lists(folder)
    source = opened("multiview", source_uri)
    train, test = rows_of(source, "train"), rows_of(source, "test")
    assert [part.split for part in source.parts()] == ["train", "train", "test"]
    assert [row.name for row in train] == ["cup/a.png", "cup/b.png", "cup/c.JPG", "hat/a.png"]
    assert [row.name for row in test] == ["shoe one/a.png", "shoe one/b.png"]
    assert source.contents.labels["label"].names == ("filled", "worn")
    assert [row.columns["label"] for row in train] == [0, 0, 0, 1]
    assert not source.contents.shuffled
    first, second, third, other = (row.columns["object"] for row in train)
    assert first == second == third != other
    assert test[0].columns["object"] == test[1].columns["object"] not in (first, other)
    assert np.array_equal(np.reshape(train[1].columns["camera_to_world"], (4, 4)), np.float32(multiview.RIGHT))
    assert np.array_equal(np.reshape(train[1].columns["intrinsics"], (3, 3)), multiview.INTRINSICS)
    assert all(row.image == folder.read(row.name) and check_image(row.image) is None for row in [*train, *test])
    bright = np.argwhere(decoded(train[0].image)[..., 0])
    assert seen_at(train[0], multiview.DOT) == pytest.approx(bright[0][::-1] + 0.5, abs=1e-4)
    assert seen_at(train[1], multiview.DOT) == pytest.approx([16, 7.5], abs=1e-4)


def test_objects_are_split_here_if_nobody_did(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    for number in range(20):
        multiview.write_json(folder, f"{number}/cameras.json", multiview.cameras(2))
        for view, file in (("front", "a.png"), ("right", "b.png")):
            folder.write(f"{number}/{file}", multiview.image(view, 9))
    source = opened("multiview", str(tmp_path))
    assert source.contents.labels == {} and source.contents.main_label is None
    objects = {split: [row.columns["object"] for row in rows_of(source, split)] for split in SPLITS}
    assert {split: len(found) for split, found in objects.items()} == {"train": 32, "val": 4, "test": 4}
    assert len(set().union(*objects.values())) == 20 == sum(len(set(found)) for found in objects.values())
    names = {split: {part.name for part in source.parts() if part.split == split} for split in SPLITS}
    again = {part.name for part in opened("multiview", str(tmp_path), "seed=1").parts() if part.split == "test"}
    assert again != names["test"]


def test_rows_come_in_the_order_of_any_index(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    multiview.write(folder)
    multiview.write_lists(folder)
    source = opened("multiview", str(tmp_path))
    rows = rows_of(source, "train", [3, 1, 0, 3])
    assert [row.name for row in rows] == ["hat/a.png", "cup/b.png", "cup/a.png", "hat/a.png"]
    assert all(row.image == folder.read(row.name) for row in rows)
    assert seen_at(rows[1], multiview.DOT) == pytest.approx([16, 7.5], abs=1e-4)
    index = index_of(source, "train")
    folder.remove("cup/b.png")
    assert [row.problem for row in source.rows(index)] == [None, "a missing file", None, None]


def test_files_keep_their_bytes_whatever_they_are(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    multiview.write(folder)
    multiview.write_lists(folder)
    cmyk = io.BytesIO()
    Image.new("CMYK", (32, 24), (9, 99, 199, 0)).save(cmyk, "JPEG")
    files = {"a.png": cmyk.getvalue(), "b.png": multiview.image("right", 9)[:-20], "c.JPG": multiview.image("front", 9)}
    for file, data in files.items():
        folder.write(f"cup/{file}", data)
    rows = rows_of(opened("multiview", str(tmp_path)), "train")[:3]
    assert [row.image for row in rows] == list(files.values())
    assert [check_image(row.image) for row in rows] == [None, "a truncated image", None]


def changed(**camera: Any) -> dict[str, Any]:
    cameras = copy.deepcopy(multiview.cameras(3))
    cameras["b.png"].update(camera)
    return cameras


OPENGL = np.array(multiview.RIGHT) @ np.diag([1, -1, 1, 1])
WHERE = r"/cup/cameras\.json: got "


@pytest.mark.parametrize(
    ("cameras", "says"),
    [
        (changed(camera_to_world=OPENGL.tolist()), "a mirror image of a rotation .* in camera_to_world of b.png"),
        (changed(camera_to_world=np.diag([2, 2, 2, 1]).tolist()), "no rotation .axes of lengths 2 2 2"),
        (changed(camera_to_world=np.transpose(multiview.RIGHT).tolist()), "a last row of 5.05 0 1 1, not 0 0 0 1"),
        (changed(camera_to_world=multiview.RIGHT[:3]), r"camera_to_world of b.png of shape \[3, 4\]; allowed: 4 lists"),
        (changed(camera_to_world=[[1, 2], [3]]), "camera_to_world of b.png that is not a matrix"),
        (changed(camera_to_world="eye"), "camera_to_world of b.png that is not a matrix"),
        (changed(camera_to_world=[[10**400] * 4] * 4), "camera_to_world of b.png that is not a matrix"),
        (
            changed(camera_to_world=np.full((4, 4), np.nan).tolist()),
            "non-finite numbers in camera_to_world of b.png",
        ),
        (changed(intrinsics=np.transpose(multiview.INTRINSICS).tolist()), "an invalid form in intrinsics of b.png"),
        (changed(intrinsics=[[-40, 0, 16], [0, 40, 12], [0, 0, 1]]), "focal lengths of -40 and 40"),
        (changed(intrinsics=[[1.2, 0, 0.5], [0, 1.2, 0.5], [0, 0, 1]]), "a principal point of 0.5 0.5, in the image's"),
        ({**changed(), "b.png": {"intrinsics": multiview.INTRINSICS}}, "no camera_to_world for b.png"),
        ({**changed(), "b.png": None}, "no camera_to_world for b.png"),
        ({**changed(), "../hat/a.png": changed()["a.png"]}, r"a camera for \.\./hat/a\.png, which does not exist"),
        ({**changed(), "d.png": changed()["a.png"]}, "a camera for d.png, which does not exist"),
        ({**changed(), "\ud800.png": changed()["a.png"]}, r"a camera for \\ud800\.png, which does not exist"),
        (multiview.cameras(2), "no camera for c.JPG"),
        ([], "no cameras"),
    ],
)
def test_wrong_cameras(cameras: Any, says: str, tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    multiview.write(folder)
    multiview.write_lists(folder)
    multiview.write_json(folder, "cup/cameras.json", cameras)
    with pytest.raises(UserError, match=WHERE + says):
        index_of(opened("multiview", str(tmp_path)), "train")


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("splits.json", {"train": ["cup"], "test": ["hat"]}, "got no split for shoe one"),
        ("splits.json", {"train": ["cup", "hat"], "test": ["hat", "shoe one"]}, "got hat in test, a second time"),
        ("splits.json", {"train": ["cup", "../hat"]}, r"got \.\./hat in train, which has no folder"),
        ("splits.json", {"training": ["cup"]}, "got split training; allowed: train, val, test"),
        ("splits.json", {"train": [["cup"]]}, "got no lists of objects by split"),
        ("splits.json", ["cup"], "got no lists of objects by split"),
        ("splits.json", {"train": ["\ud800"]}, r"got \\ud800 in train, which has no folder"),
        ("splits.json", {"\ud800": ["cup"]}, r"got split \\ud800; allowed"),
        ("labels.json", {"cup": "a", "hat": "b"}, "got no class for shoe one"),
        ("labels.json", {"cup": 1, "hat": 2, "shoe one": 3}, "got no class names by object"),
    ],
)
def test_wrong_lists(name: str, value: Any, says: str, tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    multiview.write(folder)
    multiview.write_json(folder, name, value)
    with pytest.raises(UserError, match=rf"{name}: {says}"):
        opened("multiview", str(tmp_path))


def test_half_a_character_in_the_name_of_a_class(tmp_path: Path) -> None:
    """JSON can spell what no file can hold."""
    folder = open_folder(str(tmp_path))
    multiview.write(folder)
    multiview.write_json(folder, "labels.json", {"cup": "\ud800", "hat": "b", "shoe one": "b"})
    assert opened("multiview", str(tmp_path)).contents.labels["label"].names == ("\\ud800", "b")


def test_what_is_missing_or_not_json(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    with pytest.raises(UserError, match=r"got no folders of objects; allowed: OBJECT/cameras\.json"):
        opened("multiview", str(tmp_path))
    folder.write("cup/a.png", multiview.image("front", 9))
    with pytest.raises(UserError, match=r"/cup: got no cameras\.json"):
        index_of(opened("multiview", str(tmp_path)), "train")
    for data in (b"{", b"[" * 100_000):
        folder.write("cup/cameras.json", data)
        with pytest.raises(UserError, match=r"/cup/cameras\.json: got a file that is not JSON"):
            index_of(opened("multiview", str(tmp_path)), "train")
