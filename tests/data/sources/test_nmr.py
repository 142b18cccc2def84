"""NMR: published splits, categories, and cameras that see a point of the world at its pixel."""

import io
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from soda_dist.data.formats import archive
from soda_dist.data.source import Row, check_image
from soda_dist.data.storage.folder import open_folder
from soda_dist.errors import UserError
from tests.data.written import nmr
from tests.data.written.importing import decoded, index_of, opened, rows_of, seen_at
from tests.data.written.pictures import tar_of, zip_of

FIRST = "02691156/1a2b"


def test_splits_labels_and_cameras(source_uri: str) -> None:
    folder = open_folder(source_uri)
    nmr.write(folder)
    source = opened("nmr", source_uri)
    rows = {split: rows_of(source, split) for split in ("train", "val", "test")}
    assert {split: len(found) for split, found in rows.items()} == {"train": 3 * 24, "val": 24, "test": 3 * 24}
    assert source.contents.labels["label"].names == ("airplane", "chair")
    assert not source.contents.shuffled
    train = rows["train"]
    assert [row.name for row in train[::24]] == [
        f"{name}/image/0000.png" for name in (FIRST, "02691156/3c-4d", "03001627/cccc")
    ]
    assert [row.columns["label"] for row in train[::24]] == [0, 0, 1]
    assert train[23].name == f"{FIRST}/image/0023.png"
    objects = Counter(row.columns["object"] for found in rows.values() for row in found)
    assert set(objects.values()) == {24} and len(objects) == 7
    assert len({row.columns["object"] for row in train[:24]}) == 1
    assert all(row.problem is None and check_image(row.image) is None for row in train)
    assert train[5].image == folder.read(train[5].name)


def test_a_point_falls_into_its_pixel(tmp_path: Path) -> None:
    nmr.write(open_folder(str(tmp_path)))
    rows = rows_of(opened("nmr", str(tmp_path)), "val")
    # By hand, of view 0: 2 + 0.1 before the camera, 0.2 to its left, 0.3 above its axis; z is up in our world.
    x, y, z = nmr.POINT
    point = np.array([x, -z, y])
    assert seen_at(rows[0], point) == pytest.approx([32 - 64 * 0.2 / 2.1, 32 - 64 * 0.3 / 2.1], abs=1e-4)
    assert np.reshape(rows[0].columns["camera_to_world"], (4, 4)) == pytest.approx(
        np.array([[-1, 0, 0, 0], [0, 0, -1, 2], [0, -1, 0, 0], [0, 0, 0, 1]])
    )
    assert np.array_equal(np.reshape(rows[0].columns["intrinsics"], (3, 3)), [[64, 0, 32], [0, 64, 32], [0, 0, 1]])
    for row in rows:
        dark = np.argwhere((decoded(row.image) != 255).any(-1))
        assert len(dark) == 1
        assert np.abs(seen_at(row, point) - (dark[0][::-1] + 0.5)).max() <= 0.5 + 1e-4


def test_rows_come_in_the_order_of_any_index(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    nmr.write(folder.child("NMR_Dataset"))
    source = opened("nmr", str(tmp_path))
    names = index_of(source, "train")["name"].to_pylist()
    expected = {row.name: row for row in rows_of(source, "train")}
    order = [70, 3, 3, 30, 0, 71, 25]
    rows = rows_of(source, "train", order)
    assert [row.name for row in rows] == [names[place] for place in order]
    for row in rows:
        other = expected[row.name]
        assert row.image == other.image and row.columns["object"] == other.columns["object"]
        assert np.array_equal(row.columns["camera_to_world"], other.columns["camera_to_world"])


def test_half_a_character_in_a_name(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    nmr.write(folder)
    folder.write("metadata.yaml", b"'02691156': {name: \"\\uD800, plane\"}\n'03001627': {name: chair}\n")
    assert opened("nmr", str(tmp_path)).contents.labels["label"].names == ("\\ud800", "chair")


def test_names_without_metadata_are_synsets(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    nmr.write(folder)
    folder.remove("metadata.yaml")
    assert opened("nmr", str(tmp_path)).contents.labels["label"].names == ("02691156", "03001627")
    folder.write("metadata.yml", b"03001627: {name: 'chair'}")
    assert opened("nmr", str(tmp_path)).contents.labels["label"].names == ("02691156", "chair")
    for data in (b"[chair]", b"[" * 10_000, b"{", b"\xff"):
        folder.write("metadata.yml", data)
        with pytest.raises(UserError, match=r"metadata\.yml: got no names by synset"):
            opened("nmr", str(tmp_path))


def test_what_is_wrong_with_an_object_is_said_of_its_rows(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    nmr.write(folder)
    matrices = nmr.cameras()
    matrices["world_mat_1"] = matrices["world_mat_1"][:3]  # as good as four rows
    matrices["world_mat_2"] = 1.5 * matrices["world_mat_2"]
    matrices["world_mat_3"] = np.eye(3)
    matrices["world_mat_4"] = np.diag([2.0, 1, 1, 1])
    matrices["camera_mat_5"] = np.diag([-2.0, 2, 1, 1])
    del matrices["camera_mat_6"]
    folder.write(f"{FIRST}/cameras.npz", nmr.npz(matrices))
    folder.remove(f"{FIRST}/image/0007.png")
    folder.write(f"{FIRST}/image/0008.png", nmr.image(8, 9)[:60])
    folder.write(f"{FIRST}/image/0009.png", b"")
    folder.write("02691156/3c-4d/cameras.npz", nmr.npz(matrices)[:500])
    folder.remove("03001627/cccc/cameras.npz")
    rows = rows_of(opened("nmr", str(tmp_path)), "train")
    problems = [row.problem or (row.image and check_image(row.image)) for row in rows]
    assert problems[:2] == [None, None]
    assert problems[2] == "a last row of 0 0 0 1.5, not 0 0 0 1 in world_mat_2 of cameras.npz"
    assert problems[3].startswith("world_mat_3 of shape [3, 3] in cameras.npz")
    assert problems[4].startswith("no rotation (axes of lengths 2 1 1")
    assert problems[5].startswith("no focal lengths and last row")
    assert problems[6:8] == ["no camera_mat_6 in cameras.npz", "a missing file"]
    assert problems[8:10] == ["a truncated image", "an empty file"]
    assert problems[10:24] == [None] * 14
    assert problems[24:48] == ["a damaged cameras.npz"] * 24
    assert problems[48:] == ["no cameras.npz"] * 24
    assert np.allclose(
        rows[1].columns["camera_to_world"], rows_of(opened("nmr", str(tmp_path)), "val")[1].columns["camera_to_world"]
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"{'descr': '<f8'", b"{'descr': \0<f8'"),
        (b"'<f8', 'fortran_order': False, 'shape': (4, 4), }", b"'<f8', 'fortran_order': False, 'shape': ((4, 4), }"),
        (b"'shape': (4, 4), }      ", b"'shape': (4444444444,)}"),
    ],
)
def test_headers_of_matrices_that_are_no_python(old: bytes, new: bytes, tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    nmr.write(folder)
    sink, whole = io.BytesIO(), zipfile.ZipFile(io.BytesIO(nmr.npz(nmr.cameras())))
    with zipfile.ZipFile(sink, "w") as damaged:
        for name in whole.namelist():
            data = whole.read(name)
            assert old in data
            damaged.writestr(name, data.replace(old, new))
    folder.write(f"{FIRST}/cameras.npz", sink.getvalue())
    rows = rows_of(opened("nmr", str(tmp_path)), "train")
    assert [row.problem for row in rows[:24]] == ["a damaged cameras.npz"] * 24


def test_no_object_of_an_archive_runs_code(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    nmr.write(folder)
    folder.write(f"{FIRST}/cameras.npz", nmr.npz({"world_mat_0": np.array([{"a": 1}], object)}))
    assert rows_of(opened("nmr", str(tmp_path)), "train")[0].problem is not None


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("02691156/softras_val.lst", None, r"softras_val\.lst: got no such file"),
        ("03001627/softras_val.lst", b"dddd\n", r"softras_test\.lst: got dddd, which is in 03001627/softras_val\.lst"),
        ("03001627/softras_val.lst", b"../dddd\n", r"softras_val\.lst: got '\.\./dddd'"),
        ("03001627/softras_val.lst", b"/etc\n", r"softras_val\.lst: got '/etc'"),
        ("03001627/softras_val.lst", b"..\n", r"softras_val\.lst: got '\.\.'"),
    ],
)
def test_wrong_lists(name: str, data: bytes | None, says: str, tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    nmr.write(folder)
    if data is None:
        folder.remove(name)
    else:
        folder.write(name, data)
    with pytest.raises(UserError, match=says):
        opened("nmr", str(tmp_path))


def test_no_categories(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="got no folder SYNSET/; allowed: SYNSET/softras_"):
        opened("nmr", str(tmp_path))


def published(changes: Mapping[str, bytes | None] = MappingProxyType({})) -> dict[str, bytes]:
    """The files of the .zip; some paths with other bytes, or (None) not there."""
    changed = {**nmr.files(), **changes}
    return nmr.below("NMR_Dataset/", {name: data for name, data in changed.items() if data is not None})


def same(row: Row, other: Row) -> bool:
    """Whether two rows agree in all they have."""
    return row[:2] == other[:2] and all(np.array_equal(row.columns[name], other.columns[name]) for name in row.columns)


def test_the_published_zip_is_read_in_place(source_uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    farther = nmr.cameras()
    for view in range(nmr.VIEWS):
        farther[f"world_mat_{view}"] += np.array([[0] * 4, [0] * 4, [0, 0, 0, 1], [0] * 4])
    changes = {"02691156/3c-4d/cameras.npz": nmr.npz(farther), f"{FIRST}/image/0003.png": nmr.image(4, 200)}
    unpacked = open_folder(str(tmp_path)).child("unpacked")
    for name, data in {**nmr.files(), **changes}.items():
        unpacked.write(name, data)
    expected = opened("nmr", unpacked.uri)
    open_folder(source_uri).write("NMR_Dataset.zip", zip_of(published(changes)))
    for uri in (source_uri, f"{source_uri}/NMR_Dataset.zip"):
        source = opened("nmr", uri)
        assert source.contents == expected.contents
        for split in ("train", "val", "test"):
            rows, others = rows_of(source, split), rows_of(expected, split)
            assert len(rows) == len(others) and all(map(same, rows, others))
    index = index_of(source, "train")
    monkeypatch.setattr(archive, "SeekableFile", None)  # rows need no listing
    order = [70, 3, 3, 30, 0, 71, 25]
    train = rows_of(expected, "train")
    assert all(map(same, source.rows(index.take(order)), [train[at] for at in order]))


def test_archives_of_other_roots(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    files = nmr.files()
    nmr.write(folder.child("unpacked"))
    expected = rows_of(opened("nmr", f"{tmp_path}/unpacked"), "val")
    made = {
        "a.tar": tar_of(published()),
        "b.zip": zip_of(nmr.below("", files)),
        "c.tar": tar_of(nmr.below("./", files)),
    }
    for name, data in made.items():
        folder.write(name, data)
        rows = rows_of(opened("nmr", f"{tmp_path}/{name}"), "val")
        assert len(rows) == 24 and all(map(same, rows, expected))


def test_what_an_archive_lacks_is_said_of_its_rows(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    gone = {f"{FIRST}/image/0007.png": None, "02691156/3c-4d/cameras.npz": None}
    data = bytearray(zip_of(published({**gone, f"{FIRST}/image/0009.png": b""})))
    name = f"NMR_Dataset/{FIRST}/image/0011.png".encode()
    data[data.index(name) + len(name) + 20] ^= 0xFF
    folder.write("NMR_Dataset.zip", bytes(data))
    rows = rows_of(opened("nmr", str(tmp_path)), "train")
    problems = [row.problem or check_image(row.image) for row in rows]
    assert problems[:11] == [*[None] * 7, "a missing file", None, "an empty file", None]
    assert problems[11] is not None and problems[11].startswith("a damaged member")
    assert problems[12:] == [None] * 12 + ["no cameras.npz"] * 24 + [None] * 24


def test_wrong_archives(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    files, place = published(), "02691156/softras_val.lst"
    made = {
        "list.zip": (zip_of(published({place: None})), rf"list\.zip/NMR_Dataset/{place}: got no such file"),
        "twice.zip": (zip_of(published({place: b"1a2b"})), rf"{place}: got 1a2b, which is in .*_train\.lst too"),
        "no.zip": (zip_of({"a/1.png": b"1"}), r"got no folder SYNSET/"),
        "out.zip": (zip_of({**files, "../x.png": b"1"}), r"out\.zip: got the member \.\./x\.png"),
        "link.tar": (tar_of(files, links={"NMR_Dataset/a": "/etc"}), r"link\.tar: got a link, NMR_Dataset/a"),
        "cut.zip": (zip_of(files)[:-3000], r"cut\.zip: got not a valid zip"),
        "x.tar.gz": (tar_of(files, "w:gz"), r"x\.tar\.gz: got a compressed tar; allowed: a folder, NMR_Dataset\.zip"),
    }
    for name, (data, says) in made.items():
        folder.write(name, data)
        with pytest.raises(UserError, match=says):
            opened("nmr", f"{tmp_path}/{name}")
