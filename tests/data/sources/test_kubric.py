"""Kubric's renderings of ShapeNet and GSO: cameras that see a point at its pixel, categories, what lies under alpha."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from soda_dist.data.storage.folder import open_folder
from soda_dist.data.views.decode import decode, read_header
from soda_dist.errors import UserError
from tests.data.written import kubric
from tests.data.written.importing import decoded, index_of, opened, rows_of, seen_at

WHITE_HALF = (227, 177, 127)
"""Half of (200, 100, 0) on white: c + (255 - c) * 127 / 255."""


def test_splits_labels_and_cameras(source_uri: str) -> None:
    kubric.write(open_folder(source_uri))
    source = opened("shapenet", source_uri)
    train, test = rows_of(source, "train"), rows_of(source, "test")
    assert [row.name for row in train] == [
        f"{name}/rgba_{view:05d}.png" for name in ("0001", "0003") for view in range(3)
    ]
    assert [row.name for row in test] == [f"0002/rgba_{view:05d}.png" for view in range(3)]
    names = source.contents.labels["label"].names
    assert len(names) == 55 and not source.contents.shuffled
    assert [names[row.columns["label"]] for row in train] == ["chair"] * 6
    assert [row.columns["label"] for row in test] == [0, 0, 0]
    objects = [row.columns["object"] for row in [*train, *test]]
    assert objects[:3] == [objects[0]] * 3 and len(set(objects)) == 3 == len(set(objects[::3]))
    for view, row in enumerate(train[:3]):
        assert row.problem is None
        assert seen_at(row, kubric.POINT) == pytest.approx(kubric.seen(view), abs=1e-3)
        dot = np.argwhere((decoded(row.image) == 60 * view).all(-1))
        assert len(dot) == 1
        assert np.abs(seen_at(row, kubric.POINT) - (dot[0][::-1] + 0.5)).max() <= 0.5 + 1e-4


def test_a_camera_by_hand(tmp_path: Path) -> None:
    kubric.write(open_folder(str(tmp_path)))
    first, second, _ = rows_of(opened("shapenet", str(tmp_path)), "test")
    # From (0, -4, 1) along +y: x right is x, y down is -z, z forward is y.
    pose = [[1, 0, 0, 0], [0, 0, 1, -4], [0, -1, 0, 1], [0, 0, 0, 1]]
    assert np.reshape(first.columns["camera_to_world"], (4, 4)) == pytest.approx(np.array(pose), abs=1e-6)
    # 35 mm of 32 mm over 40 pixels; the point is 1 to the right and 0.4 above, 4 away.
    assert np.array_equal(np.reshape(first.columns["intrinsics"], (3, 3)), [[43.75, 0, 20], [0, 43.75, 15], [0, 0, 1]])
    assert seen_at(first, kubric.POINT) == pytest.approx([20 + 43.75 / 4, 15 - 0.4 * 43.75 / 4], abs=1e-4)
    # From (5, 0, 1) along -x: x right is y.
    pose = [[0, 0, -1, 5], [1, 0, 0, 0], [0, -1, 0, 1], [0, 0, 0, 1]]
    assert np.reshape(second.columns["camera_to_world"], (4, 4)) == pytest.approx(np.array(pose), abs=1e-6)
    assert seen_at(second, kubric.POINT) == pytest.approx([20, 15 - 0.4 * 43.75 / 4], abs=1e-4)


@pytest.mark.parametrize(
    ("options", "shade", "half"), [((), 255, WHITE_HALF), (("background=black",), 0, (100, 50, 0))]
)
def test_what_is_transparent_shows_the_background(
    options: tuple[str, ...], shade: int, half: tuple[int, ...], tmp_path: Path
) -> None:
    kubric.write(open_folder(str(tmp_path)))
    row = rows_of(opened("shapenet", str(tmp_path), *options), "test")[1]
    header = read_header(row.image)
    assert header is not None and decoded(row.image).shape == (30, 40, 3)
    image = decode(row.image, header, 1)
    assert image is not None
    assert tuple(image[0, 0]) == half
    assert (image.reshape(-1, 3) == shade).all(-1).sum() == 30 * 40 - 2


def test_other_kinds_of_images(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    kubric.write(folder)
    rgba = kubric.pixels(0, 0)
    opaque = kubric.encoded(rgba[:, :, :3])
    folder.write("0002/rgba_00000.png", opaque)
    folder.write("0002/rgba_00001.png", kubric.encoded(rgba[::2, ::2]))
    sink = io.BytesIO()
    Image.fromarray(rgba).convert("LA").save(sink, "PNG")
    folder.write("0002/rgba_00002.png", sink.getvalue())
    rows = rows_of(opened("shapenet", str(tmp_path)), "test")
    assert rows[0].image == opaque
    assert np.array_equal(
        np.reshape(rows[1].columns["intrinsics"], (3, 3)), [[21.875, 0, 10], [0, 21.875, 7.5], [0, 0, 1]]
    )
    assert decoded(rows[2].image)[5, 5].tolist() == [255, 255, 255]


def test_categories_of_scanned_objects_in_folders(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    for name, category in {"a/1": "Shoe", "a/2": "None", "b/1": None}.items():
        kubric.write_object(folder, name, kubric.metadata(category))
    empty = {**kubric.metadata(None), "instances": []}
    kubric.write_object(folder, "b/2", empty)
    kubric.write_object(folder, "b/3", kubric.metadata("chair"))
    source = opened("gso", str(tmp_path))
    found = {
        row.name.rpartition("/")[0]: row
        for split in ("train", "val", "test")
        for row in (rows_of(source, split) if any(part.split == split for part in source.parts()) else [])
    }
    names = source.contents.labels["label"].names
    assert len(names) == 17
    assert {name: row.columns.get("label", -1) for name, row in found.items()} == {
        "a/1": names.index("Shoe"), "a/2": names.index("None"), "b/1": None, "b/2": None, "b/3": -1,
    }  # fmt: skip
    assert found["b/3"].problem == "an unknown category chair"


def test_objects_are_split_here_if_nobody_did(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    for number in range(10):
        kubric.write_object(folder, f"{number}", kubric.metadata("car", 1), 1)
    source = opened("shapenet", str(tmp_path))
    objects = {split: [row.columns["object"] for row in rows_of(source, split)] for split in ("train", "val", "test")}
    assert {split: len(found) for split, found in objects.items()} == {"train": 8, "val": 1, "test": 1}
    assert len(set().union(*objects.values())) == 10


def test_rows_come_in_the_order_of_any_index(tmp_path: Path) -> None:
    kubric.write(open_folder(str(tmp_path)))
    source = opened("shapenet", str(tmp_path))
    expected = rows_of(source, "train")
    order = [5, 0, 3, 3, 1]
    for row, place in zip(rows_of(source, "train", order), order, strict=True):
        assert (row.name, row.image) == (expected[place].name, expected[place].image)
        assert np.array_equal(row.columns["camera_to_world"], expected[place].columns["camera_to_world"])


def test_what_is_wrong_with_a_view_is_said_of_its_row(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    kubric.write(folder)
    folder.remove("0001/rgba_00000.png")
    whole = folder.read("0001/rgba_00001.png")
    folder.write("0001/rgba_00001.png", whole[:-20])
    folder.write("0001/rgba_00002.png", whole[:60] + b"\xff" * 20 + whole[80:])
    tree = kubric.metadata("chair")
    tree["camera"]["quaternions"][0] = [2, 0, 0, 0]
    tree["camera"]["positions"][1] = [float("nan"), 0, 0]
    kubric.write_object(folder, "0003", tree)
    folder.write("0003/rgba_00002.png", kubric.encoded(kubric.pixels(2, 9)[:20]))
    problems = [row.problem for row in rows_of(opened("shapenet", str(tmp_path)), "train")]
    assert problems[:2] == ["a missing file", "a truncated image"]
    assert problems[2] is not None and problems[2].startswith("a broken image")
    assert problems[3:] == [
        "a quaternion in metadata.json of length 2",
        "a camera in metadata.json with non-finite numbers",
        "a cropped image: 40x20 of 40x30 pixels",
    ]


def changed(**camera: Any) -> dict[str, Any]:
    tree = kubric.metadata("chair")
    tree["camera"].update(camera)
    return tree


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        (None, "no metadata.json"),
        (b"{", "invalid JSON in metadata.json"),
        (b"[" * 100_000, "invalid JSON in metadata.json"),
        ([], "metadata.json without camera or resolution (TypeError"),
        ({"camera": {}}, "metadata.json without camera or resolution (KeyError: 'metadata')"),
        (changed(positions=[]), "metadata.json with positions [0] and quaternions [3, 4]"),
        (changed(positions=[[0, 0, 1]] * 2), "metadata.json with positions [2, 3] and quaternions [3, 4]"),
        (changed(quaternions=[[1, 0, 0]] * 3), "metadata.json with positions [3, 3] and quaternions [3, 3]"),
        (changed(positions=3), "metadata.json with positions [] and quaternions [3, 4]"),
        (changed(focal_length="long"), "metadata.json without camera or resolution (ValueError"),
        (changed(focal_length=10**400), "metadata.json without camera or resolution (OverflowError"),
        (changed(focal_length=0), "metadata.json with a resolution or focal length that is not positive"),
    ],
)
def test_an_object_without_cameras_is_one_row_with_a_problem(tree: Any, says: str, tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    kubric.write(folder)
    if tree is None:
        folder.remove("0001/metadata.json")
    else:
        folder.write("0001/metadata.json", tree if isinstance(tree, bytes) else json.dumps(tree).encode())
    source = opened("shapenet", str(tmp_path))
    assert index_of(source, "train")["name"].to_pylist()[:2] == ["0001/metadata.json", "0003/rgba_00000.png"]
    rows = rows_of(source, "train")
    assert rows[0].problem is not None and rows[0].problem.startswith(says)
    assert [row.problem for row in rows[1:]] == [None] * 3


def test_half_a_character_in_a_category(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    kubric.write_object(folder, "0001", kubric.metadata("\ud800" * 100))
    rows = [
        row
        for part in opened("shapenet", str(tmp_path)).parts()
        for row in rows_of(opened("shapenet", str(tmp_path)), part.split)
    ]
    assert [row.problem for row in rows] == ["an unknown category " + "\\ud800" * 6 + "\\ud8"] * 3


def test_no_renderings(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    says = r"got no metadata\.json in its folders; allowed: \[CATEGORY/\]OBJECT/metadata\.json"
    with pytest.raises(UserError, match=says):
        opened("gso", str(tmp_path))
    folder.write("a/b/rgba_00000.png", b"1")
    with pytest.raises(UserError, match=says):
        opened("gso", str(tmp_path))
