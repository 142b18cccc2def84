"""CelebA-HQ: forty attributes through CelebA's partition, and gender by folders."""

from pathlib import Path

import pytest

from soda_dist.data.labels import choose_label
from soda_dist.data.shards import Manifest
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.errors import UserError
from tests.data.written import celebahq
from tests.data.written.importing import opened, rows_of
from tests.data.written.pictures import picture, zip_of

ANNOTATIONS = "CelebAMask-HQ/CelebAMask-HQ-attribute-anno.txt"
MAPPING = "CelebAMask-HQ/CelebA-HQ-to-CelebA-mapping.txt"
NUMBERS = {"train": [0, 1], "val": [10], "test": [2, 3]}
"""By hand, through the file's name: 162771.jpg is for validation, though its number from 0 on is 162770."""


def write(uri: str, form: str) -> str:
    folder = open_folder(uri)
    if form == "folder":
        celebahq.write(folder)
        return uri
    folder.write("CelebAMask-HQ.zip", zip_of(celebahq.files()))
    folder.write("list_eval_partition.txt", celebahq.partition())
    return f"{uri}/CelebAMask-HQ.zip" if form == "zip" else uri


@pytest.mark.parametrize("form", ["folder", "zip", "folder of the zip"])
def test_attributes_and_the_splits_of_celeba(form: str, source_uri: str) -> None:
    source = opened("celebahq", write(source_uri, form))
    assert tuple(source.contents.labels) == celebahq.ATTRIBUTES
    assert {label.kind for label in source.contents.labels.values()} == {"attribute"}
    for split, numbers in NUMBERS.items():
        rows = rows_of(source, split)
        assert [row.name for row in rows] == [f"CelebAMask-HQ/CelebA-HQ-img/{number}.jpg" for number in numbers]
        assert [row.image for row in rows] == [picture(number) for number in numbers]
        assert all(row.problem is None for row in rows)
        for row, number in zip(rows, numbers, strict=True):
            wanted = [(value + 1) // 2 for value in celebahq.VALUES[number]]
            assert row.columns == dict(zip(celebahq.ATTRIBUTES, wanted, strict=True))
    assert [row.image for row in rows_of(source, "test", [1, 0, 1])] == [picture(3), picture(2), picture(3)]


def test_the_main_label_is_all_attributes_together(tmp_path: Path) -> None:
    contents = opened("celebahq", write(str(tmp_path), "folder")).contents
    manifest = Manifest(
        version=2,
        kind="celebahq",
        source="",
        fingerprint="",
        splits={},
        labels=contents.labels,
        main_label=contents.main_label,
        rejected=0,
    )
    chosen = choose_label(manifest, None, field="evaluation.label", remedy="name one")
    assert (chosen.columns, chosen.classes) == (celebahq.ATTRIBUTES, 2)


def test_the_partition_may_lie_inside_and_splits_may_be_drawn(tmp_path: Path) -> None:
    folder = open_folder(write(str(tmp_path), "folder"))
    folder.remove("list_eval_partition.txt")
    with pytest.raises(UserError, match=r"list_eval_partition\.txt: got a missing file; .*splits=drawn"):
        opened("celebahq", str(tmp_path))
    source = opened("celebahq", str(tmp_path), "splits=drawn")
    assert [part.split for part in source.parts()] == ["train"], "of five rows a tenth is none"
    assert len(rows_of(source, "train")) == 5
    folder.write("CelebAMask-HQ/list_eval_partition.txt", celebahq.partition())
    for uri in (str(tmp_path), f"{tmp_path}/CelebAMask-HQ"):
        assert [len(rows_of(opened("celebahq", uri), split)) for split in NUMBERS] == [2, 1, 2]


def test_images_and_attributes_that_are_missing_are_rows_with_a_problem(tmp_path: Path) -> None:
    folder = open_folder(write(str(tmp_path), "folder"))
    text = folder.read(ANNOTATIONS).decode()
    text = text.replace("0.jpg  -1 -1 1 \n", "0.jpg  -1 1 \n\n", 1).replace("2.jpg  -1", "2.jpg  0", 1)
    folder.write(ANNOTATIONS, text.replace("3.jpg  -1 -1 -1 \n", "").encode())
    folder.remove("CelebAMask-HQ/CelebA-HQ-img/1.jpg")
    source = opened("celebahq", str(tmp_path))
    found = {row.name.rpartition("/")[2]: row.problem for split in NUMBERS for row in rows_of(source, split)}
    assert found == {
        "0.jpg": "2 attributes, not 3",
        "1.jpg": "a missing file",
        "2.jpg": "an attribute '0'",
        "3.jpg": "no attributes",
        "10.jpg": None,
    }


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        (ANNOTATIONS, None, r"attribute-anno\.txt: got a missing file"),
        (ANNOTATIONS, b"", r"attribute-anno\.txt: got no count and names"),
        (ANNOTATIONS, b"Male Young\n0.jpg 1 1\n", r"attribute-anno\.txt: got no count and names"),
        (ANNOTATIONS, b"1\nMale Male\n0.jpg 1 1\n", r"attribute-anno\.txt: got a repeated or reserved name"),
        (ANNOTATIONS, b"1\nMale image\n0.jpg 1 1\n", r"attribute-anno\.txt: got a repeated or reserved name"),
        (MAPPING, None, r"mapping\.txt: got a missing file"),
        (MAPPING, b"idx orig_idx orig_file\n", r"mapping\.txt: got no lines"),
        (MAPPING, b"idx orig_idx orig_file\n0 1\n", r"mapping\.txt: got the line 0 1"),
        (MAPPING, b"heading\n" + b"9" * 5000 + b" 1 a.jpg\n", r"mapping\.txt: got the line 9999"),
        (MAPPING, b"idx orig_idx orig_file\n../../x 1 a.jpg\n", r"mapping\.txt: got the line \.\./"),
        ("list_eval_partition.txt", b"119613.jpg 3\n", r"partition\.txt: got no line 119613\.jpg 0\|1\|2"),
    ],
)
def test_files_that_are_not_as_published(name: str, data: bytes | None, says: str, tmp_path: Path) -> None:
    folder = open_folder(write(str(tmp_path), "folder"))
    if data is None:
        folder.remove(name)
    else:
        folder.write(name, data)
    with pytest.raises(UserError, match=says):
        opened("celebahq", str(tmp_path))


def stargan(folder: Folder, form: str) -> None:
    if form == "zip":
        folder.write("celeba_hq.zip", zip_of(celebahq.stargan()))
        return
    for name, data in celebahq.stargan().items():
        folder.write(name, data)


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_gender_by_folders(form: str, source_uri: str) -> None:
    stargan(open_folder(source_uri), form)
    source = opened("celebahq", source_uri)
    label = source.contents.labels["Male"]
    assert (label.kind, label.names, source.contents.main_label) == ("attribute", ("no", "yes"), "Male")
    assert source.contents.shuffled
    assert [row.columns["Male"] for row in rows_of(source, "train")] == [0, 0, 0, 1, 1]
    assert [row.columns["Male"] for row in rows_of(source, "val")] == [0, 1]
    rows = rows_of(source, "train") + rows_of(source, "val")
    assert {row.name: row.image for row in rows} == celebahq.stargan()


def test_what_is_not_celebahq(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none of CelebA-HQ's layouts"):
        opened("celebahq", str(tmp_path))
    folder = open_folder(str(tmp_path))
    folder.write("train/cats/1.jpg", picture(1))
    folder.write("val/female/1.jpg", picture(1))
    with pytest.raises(UserError, match="got the folder cats in train; allowed: female, male"):
        opened("celebahq", str(tmp_path))
