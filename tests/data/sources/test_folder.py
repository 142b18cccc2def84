"""Any tree of images: splits and classes from folders, drawn splits, no classes, archives of a tree."""

from pathlib import Path

import numpy as np
import pytest

from soda_dist.data.formats.hashed_splits import split_of
from soda_dist.data.source import check_image
from soda_dist.data.storage.folder import open_folder
from soda_dist.errors import UserError
from tests.data.written import folder as written
from tests.data.written.importing import decoded, opened, rows_of
from tests.data.written.pictures import picture, pixels, tar_of, zip_of


def write(uri: str, form: str) -> str:
    """The tree, or an archive that holds it below one folder; its URI."""
    below = {f"pictures/{name}": data for name, data in written.files().items()}
    if form == "folder":
        written.write(open_folder(uri))
        return uri
    open_folder(uri).write(form, zip_of(below) if form == "x.zip" else tar_of(below, "w:gz"))
    return f"{uri}/{form}"


@pytest.mark.parametrize("form", ["folder", "x.zip", "x.tgz"])
def test_folders_of_splits_and_classes(form: str, source_uri: str) -> None:
    source = opened("folder", write(source_uri, form))
    assert source.contents.labels["label"].names == ("Dog", "cat")
    assert source.contents.main_label == "label" and source.contents.shuffled
    top = "" if form == "folder" else "pictures/"
    found, rejected = {}, {}
    for split, folder in (("train", "train"), ("val", "valid"), ("test", "test")):
        for row in rows_of(source, split):
            assert row.name.startswith(f"{top}{folder}/")
            reason = row.problem or check_image(row.image)
            if reason:
                rejected[row.name.removeprefix(top)] = reason
            else:
                assert row.columns == {"label": 0 if "/Dog/" in row.name else 1}
                found[row.name.removeprefix(top)] = row.image
    assert found == written.FILES
    assert rejected == written.REJECTED


def test_odd_pictures_are_kept_as_they_are(tmp_path: Path) -> None:
    written.write(open_folder(str(tmp_path)))
    rows = {row.name: row.image for row in rows_of(opened("folder", str(tmp_path)), "val")}
    assert decoded(rows["valid/cat/turned.jpg"]).shape == (20, 30, 3), "not turned"
    assert np.array_equal(decoded(rows["valid/cat/named.jpg"]), pixels(7))


def test_without_classes(tmp_path: Path) -> None:
    written.write(open_folder(str(tmp_path)))
    source = opened("folder", str(tmp_path), "classes=false")
    assert source.contents.columns == () and source.contents.labels == {} and source.contents.main_label is None
    assert source.contents.shuffled
    names = [row.name for row in rows_of(source, "train")]
    assert names == sorted(name for name in [*written.FILES, *written.REJECTED] if name.startswith("train/"))
    assert all(row.columns == {} and row.problem is None for row in rows_of(source, "train"))


def test_splits_that_hold_images_without_folders(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    for name in ("train/1.jpg", "train/2.jpg", "validation/3.jpg"):
        folder.write(name, picture(1))
    source = opened("folder", str(tmp_path))
    assert [(part.split, part.name) for part in source.parts()] == [("train", "train/"), ("val", "validation/")]
    assert [row.name for row in rows_of(source, "train")] == ["train/1.jpg", "train/2.jpg"]


@pytest.mark.parametrize("form", ["folder", "x.zip"])
def test_drawn_splits_of_classes(form: str, source_uri: str) -> None:
    files = {f"{name}/{number}.jpg": picture(number) for name in ("b", "a") for number in range(20)}
    files["stray.txt"] = b"text"
    folder = open_folder(source_uri)
    top = "" if form == "folder" else "pictures/"
    if form == "folder":
        for name, data in files.items():
            folder.write(name, data)
    else:
        folder.write(form, zip_of({top + name: data for name, data in files.items()}))
    uri = source_uri if form == "folder" else f"{source_uri}/{form}"
    rows = {split: rows_of(opened("folder", uri), split) for split in ("train", "val", "test")}
    rows = {split: [row._replace(name=row.name.removeprefix(top)) for row in found] for split, found in rows.items()}
    for split, found in rows.items():
        assert [row.name for row in found] == sorted(name for name in files if split_of(name, 0) == split) != []
    together = [row for found in rows.values() for row in found]
    assert sorted(row.name for row in together) == sorted(files)
    for row in together:
        assert row.problem == ("not in a class folder" if row.name == "stray.txt" else None)
        assert row.columns["label"] == {"a": 0, "b": 1}.get(row.name[0])
        assert row.image == (b"" if row.problem else files[row.name])
    again = rows_of(opened("folder", uri, "seed=1"), "test")
    assert {row.name.removeprefix(top) for row in again} == {name for name in files if split_of(name, 1) == "test"}


def test_few_images_leave_no_empty_split(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    names = [name for name in (f"chunk/{number}.jpg" for number in range(40)) if split_of(name, 0) == "train"][:3]
    for number, name in enumerate(names):
        folder.write(name, picture(number))
    source = opened("folder", str(tmp_path))
    assert [part.split for part in source.parts()] == ["train"], "an empty split is none"
    assert source.contents.labels == {}, "one folder tells nothing"
    assert [row.image for row in rows_of(source, "train", [2, 0])] == [picture(2), picture(0)]


def test_drawn_although_there_are_folders_of_splits(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    names = [f"{'train' if number % 2 else 'test'}/{number}.jpg" for number in range(40)]
    for name in names:
        folder.write(name, picture(1))
    source = opened("folder", str(tmp_path), "splits=drawn", "classes=false")
    for split in ("train", "val", "test"):
        wanted = sorted(name for name in names if split_of(name, 0) == split)
        assert [row.name for row in rows_of(source, split)] == wanted != []


@pytest.mark.parametrize(
    ("names", "options", "says"),
    [
        ([], [], "got no files"),
        (["val/a/1.jpg", "a/2.jpg"], [], "got val/ and no folder train; .*splits=drawn"),
        (["train/1.jpg", "val/1.jpg", "valid/1.jpg"], [], "got both val and valid; allowed: one folder of val"),
        (["a/1.jpg"], ["splits=folders"], "splits: got folders, but .* has no split folders"),
        (["1.jpg"], ["classes=true"], "classes: got true, but .* has no class folders"),
        (["train/a/1.jpg", "train/b/1.jpg", "test/c/1.jpg"], [], "got the class c in test, which train lacks"),
        (["train/1.jpg", "val/a/1.jpg", "val/b/1.jpg"], [], "got the class a in val, which train lacks"),
        (["train/1.jpg", "Train/1.jpg"], [], "got both Train and train; allowed: one folder of train"),
        (["train/1.jpg", "more/1.jpg"], [], "got a folder more with images beside the split train; .*splits=folders"),
        (["train/a/1.jpg", "x/a/1.jpg", "y/a/1.jpg"], [], "got a folder x with images beside the split train"),
        (["train/1.jpg", "test/1.jpg"], ["splits=drawn"], "splits: got drawn, and folders test, train"),
        (["1.jpg"], ["splits=other"], "splits: got 'other'"),
    ],
)
def test_trees_that_are_not_what_is_said(names: list[str], options: list[str], says: str, tmp_path: Path) -> None:
    for name in names:
        open_folder(str(tmp_path)).write(name, picture(1))
    with pytest.raises(UserError, match=says):
        opened("folder", str(tmp_path), *options)


def put(place: Path, *names: str) -> None:
    for number, name in enumerate(names):
        open_folder(str(place)).write(name, picture(number))


def test_split_names_in_any_case_and_classes_in_one_unicode_form(tmp_path: Path) -> None:
    put(tmp_path, "Train/caf\u00e9/1.jpg", "Train/cafe\u0301/2.jpg", "Train/x/3.jpg", "VALIDATION/cafe\u0301/4.jpg")
    source = opened("folder", str(tmp_path))
    assert source.contents.labels["label"].names == ("caf\u00e9", "x")
    assert {row.name: row.columns["label"] for row in rows_of(source, "train")} == {
        "Train/caf\u00e9/1.jpg": 0,
        "Train/cafe\u0301/2.jpg": 0,
        "Train/x/3.jpg": 1,
    }
    assert [row.columns["label"] for row in rows_of(source, "val")] == [0]


@pytest.mark.parametrize("top", ["", "vehicles/"])
@pytest.mark.parametrize("below", ["", "images/"])
def test_a_class_called_train(top: str, below: str, tmp_path: Path) -> None:
    names = ("airplane", "bus", "train", "truck")
    put(tmp_path, *(f"{top}{name}/{below}{at}.jpg" for name in names for at in range(9)))
    source = opened("folder", str(tmp_path))
    assert source.contents.labels["label"].names == names and source.contents.drawn
    assert sum(len(rows_of(source, part.split)) for part in source.parts()) == 36
    assert source.contents.notes == ("train is read as a class, like airplane: set splits=folders if it is a split",)
    split = opened("folder", str(tmp_path), "splits=folders")
    assert len(rows_of(split, "train")) == 9
    assert split.contents.notes[0] == "left out beside the splits: airplane, bus, truck"


def test_splits_below_a_single_folder(tmp_path: Path) -> None:
    put(tmp_path, "flowers/train/a/1.jpg", "flowers/train/b/1.jpg", "flowers/test/a/2.jpg")
    source = opened("folder", str(tmp_path))
    assert [part.split for part in source.parts()] == ["train"] * 3 + ["test"] * 2
    assert source.contents.labels["label"].names == ("a", "b")


@pytest.mark.parametrize("form", ["folder", "x.zip"])
def test_tiny_imagenet_as_published(form: str, tmp_path: Path) -> None:
    for name, data in written.tiny().items() if form == "folder" else ():
        open_folder(str(tmp_path)).write(name, data)
    if form == "x.zip":
        open_folder(str(tmp_path)).write(form, zip_of({f"tiny/{name}": data for name, data in written.tiny().items()}))
    uri = str(tmp_path) if form == "folder" else f"{tmp_path}/{form}"
    source = opened("folder", uri, "unlabelled=import")
    assert source.contents.labels["label"].names == ("n01", "n02")
    assert [row.columns["label"] for row in rows_of(source, "train")] == [0, 0, 1, 1]
    assert [row.columns["label"] for row in rows_of(source, "val")] == [1, 0, None]
    assert [row.columns["label"] for row in rows_of(source, "test")] == [None] * 3
    assert [row.problem for row in rows_of(opened("folder", uri), "val")] == [None, None, "no annotation"]


def test_annotations_of_a_class_that_train_lacks(tmp_path: Path) -> None:
    for name, data in {**written.tiny(), "val/val_annotations.txt": b"val_0.JPEG\tn03\n"}.items():
        open_folder(str(tmp_path)).write(name, data)
    with pytest.raises(UserError, match=r"val_annotations\.txt: got the class n03, which train lacks"):
        opened("folder", str(tmp_path))
