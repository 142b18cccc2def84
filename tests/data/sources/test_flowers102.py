"""Flowers 102: numbers and labels from 1 on, the archive with and without compression, the unpacked folder."""

from collections.abc import Callable
from pathlib import Path

import pytest

from soda_dist.data.sources.flowers102 import CLASSES
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.errors import UserError
from tests.data.written import flowers102
from tests.data.written.importing import index_of, opened, rows_of
from tests.data.written.pictures import picture, tar_of

SPLITS = {"train": [2, 7], "val": [3, 5], "test": [1, 4, 6, 8]}


def write_plain(folder: Folder) -> None:
    """The name of a compressed archive, but a tar."""
    for name, data in {"102flowers.tgz": tar_of(flowers102.images()), **flowers102.mats()}.items():
        folder.write(name, data)


def write_torchvision(folder: Folder) -> None:
    flowers102.write_folder(folder.child("flowers-102"))


WRITERS = [flowers102.write, flowers102.write_folder, write_plain, write_torchvision]


@pytest.mark.parametrize("write", WRITERS)
def test_published_splits_and_labels(write: Callable[[Folder], None], source_uri: str) -> None:
    write(open_folder(source_uri))
    source = opened("flowers102", source_uri)
    root = "flowers-102/" if write is write_torchvision else ""
    for split, numbers in SPLITS.items():
        rows = rows_of(source, split)
        assert [row.name for row in rows] == [f"{root}jpg/image_{number:05d}.jpg" for number in numbers]
        assert [row.image for row in rows] == [picture(number) for number in numbers]
        assert [row.columns["label"] for row in rows] == [flowers102.LABELS[number - 1] - 1 for number in numbers]
    assert [row.columns["label"] for row in rows_of(source, "val")] == [101, 20]
    assert [row.image for row in rows_of(source, "test", [3, 0, 2, 0])] == [picture(n) for n in (8, 1, 6, 1)]
    assert source.contents.shuffled


def test_all_images_are_a_split_of_their_own_if_asked_for(tmp_path: Path) -> None:
    flowers102.write(open_folder(str(tmp_path)))
    published, whole = opened("flowers102", str(tmp_path)), opened("flowers102", str(tmp_path), "all=true")
    assert [part.split for part in published.parts()] == ["train", "val", "test"]
    assert [part.split for part in whole.parts()] == ["train", "val", "test", "all"]
    assert [row.image for row in rows_of(whole, "all")] == [picture(number) for number in range(1, 9)]
    assert [row.columns["label"] for row in rows_of(whole, "all")] == [label - 1 for label in flowers102.LABELS]
    for split in SPLITS:
        assert rows_of(whole, split) == rows_of(published, split)


def test_the_archive_may_be_named(source_uri: str) -> None:
    flowers102.write(open_folder(source_uri))
    assert len(rows_of(opened("flowers102", f"{source_uri}/102flowers.tgz"), "test")) == 4


def test_102_names() -> None:
    assert len(CLASSES) == len(set(CLASSES)) == 102
    assert all(name == " ".join(name.split()) for name in CLASSES)
    # https://www.robots.ox.ac.uk/~vgg/data/flowers/102/categories.html
    known = {1: "pink primrose", 21: "fire lily", 45: "bolero deep blue", 77: "passion flower", 102: "blackberry lily"}
    assert {number: CLASSES[number - 1] for number in known} == known


@pytest.mark.parametrize("write", WRITERS[:2])
def test_an_image_that_is_missing_is_a_row_with_a_problem(write: Callable[[Folder], None], tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    write(folder)
    left = {name: data for name, data in flowers102.images().items() if "00004" not in name}
    if folder.exists("102flowers.tgz"):
        folder.write("102flowers.tgz", tar_of(left, "w:gz"))
    else:
        folder.remove("jpg/image_00004.jpg")
    rows = rows_of(opened("flowers102", str(tmp_path)), "test")
    assert [row.problem for row in rows] == [None, "a missing file", None, None]
    assert rows[2].image == picture(6)


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("imagelabels.mat", None, r"imagelabels\.mat: got a missing file"),
        ("setid.mat", None, r"setid\.mat: got a missing file"),
        ("setid.mat", b"no matrix", r"setid\.mat: got no trnid"),
        ("setid.mat", b"", r"setid\.mat: got no trnid"),
        ("setid.mat", flowers102.mats()["setid.mat"][:-20], r"setid\.mat: got no (trnid|valid|tstid)"),
        ("setid.mat", flowers102.mat(trnid=(1,), valid=(2,)), r"setid\.mat: got no tstid"),
        ("setid.mat", flowers102.mat(trnid=(1, 2), valid=(2,), tstid=(3,)), "setid.mat: got an image twice"),
        ("setid.mat", flowers102.mat(trnid=(9,), valid=(2,), tstid=(3,)), r"no label 1\.\.102 of image 9"),
        ("setid.mat", flowers102.mat(trnid=(0,), valid=(2,), tstid=(3,)), r"no label 1\.\.102 of image 0"),
        ("imagelabels.mat", flowers102.mat(labels=(103,) * 8), r"no label 1\.\.102 of image 2"),
        ("102flowers.tgz", tar_of(flowers102.images(), "w:gz")[:-300], r"102flowers\.tgz: got not a valid tar\.gz"),
        ("102flowers.tgz", tar_of({"a/1.jpg": b"1"}, "w:gz"), "got no images of Flowers 102"),
    ],
    ids=lambda value: "data" if isinstance(value, bytes) else None,  # an archive's bytes hold the time
)
def test_files_that_are_not_as_published(name: str, data: bytes | None, says: str, tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    flowers102.write(folder)
    if data is None:
        folder.remove(name)
    else:
        folder.write(name, data)
    with pytest.raises(UserError, match=says):
        index_of(opened("flowers102", str(tmp_path)), "train")
