"""CUB-200-2011: the archive and the folder, squares about the birds' boxes, attributes in odd lines."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from soda_dist.data.sources.cub import Box, crop_square
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.data.views.decode import decode, read_header
from soda_dist.errors import UserError
from tests.data.written import cub
from tests.data.written.importing import decoded, index_of, opened, rows_of

TRAIN, TEST = [2, 3, 5], [1, 4]
WRITERS = [cub.write, cub.write_folder]


def pixels(number: int) -> np.ndarray:
    """Of the published image, 20 x 30."""
    data = cub.image(number)
    header = read_header(data)
    assert header is not None
    image = decode(data, header, 1)
    assert image is not None
    return image


@pytest.mark.parametrize("write", WRITERS)
def test_splits_labels_and_attributes(write: Callable[[Folder], None], source_uri: str) -> None:
    write(open_folder(source_uri))
    source = opened("cub", source_uri, "crop=none")
    assert source.contents.labels["label"].names == cub.CLASSES
    assert tuple(source.contents.labels) == ("label", *cub.ATTRIBUTES)
    assert [label.kind for label in source.contents.labels.values()] == ["class"] + ["attribute"] * 4
    assert source.contents.main_label == "label" and source.contents.shuffled
    for split, numbers in (("train", TRAIN), ("test", TEST)):
        rows = rows_of(source, split)
        assert [row.name for row in rows] == [f"CUB_200_2011/images/{cub.name(number)}" for number in numbers]
        assert [row.image for row in rows] == [cub.image(number) for number in numbers]
        assert [row.columns.pop("label") for row in rows] == [cub.IMAGES[number][0] - 1 for number in numbers]
        wanted = [dict(zip(cub.ATTRIBUTES, cub.PRESENT[number], strict=True)) for number in numbers]
        assert [row.columns for row in rows] == wanted
    again = rows_of(source, "train", [2, 0, 2])
    assert [row.image for row in again] == [cub.image(number) for number in (5, 2, 5)]


@pytest.mark.parametrize("write", WRITERS)
def test_squares_about_the_boxes(write: Callable[[Folder], None], tmp_path: Path) -> None:
    write(open_folder(str(tmp_path)))
    source = opened("cub", str(tmp_path))
    found = {int(row.name[-5]): decoded(row.image) for split in ("train", "test") for row in rows_of(source, split)}
    # Box 1 is x 4..16, y 3..13: a square of 12 about (10, 8), inside the image.
    assert np.array_equal(found[1], pixels(1)[2:14, 4:16])
    # Box 2 is the image, 30 x 20: five black rows above and below it.
    assert found[2].shape == (30, 30, 3)
    assert np.array_equal(found[2][5:25], pixels(2)) and not found[2][:5].any() and not found[2][25:].any()
    # Box 3 is x 20..30, y 12..20: a square of 10 about (25, 16), one row of it below the image; grey became RGB.
    assert np.array_equal(found[3][:9], pixels(3)[11:20, 20:30]) and not found[3][9].any()
    assert (found[3][..., 0] == found[3][..., 2]).all()
    # Box 4 is x 5..8, y 6..15: a square of 9 about (6.5, 10.5).
    assert np.array_equal(found[4], pixels(4)[6:15, 2:11])
    assert found[5].shape == (6, 6, 3), "5.5 pixels, rounded up"


def test_a_square_at_every_edge() -> None:
    image = np.arange(1, 5 * 7 * 3 + 1, dtype=np.uint8).reshape(5, 7, 3)
    for x in range(-6, 10):
        for y in range(-6, 8):
            square = crop_square(image, Box(x, y, 4, 2))
            padded = np.pad(image, ((20, 20), (20, 20), (0, 0)))
            wanted = padded[20 + y - 1 : 20 + y + 3, 20 + x : 20 + x + 4]
            assert (square is None) == (not wanted.any())
            assert square is None or np.array_equal(square, wanted)


@pytest.mark.parametrize("place", ["CUB_200_2011/attributes/attributes.txt", "CUB_200_2011/attributes.txt", None])
def test_where_the_attributes_names_may_lie(place: str | None, tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    cub.write_folder(folder)
    if place:
        folder.write(place, folder.read("attributes.txt"))
        folder.remove("attributes.txt")
    for uri in (str(tmp_path), f"{tmp_path}/CUB_200_2011"):
        source = opened("cub", uri)
        assert tuple(source.contents.labels)[1:] == cub.ATTRIBUTES
        assert len(rows_of(source, "train")) == 3


def test_without_attributes(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    cub.write_folder(folder)
    folder.remove("attributes.txt")
    folder.remove("CUB_200_2011/attributes/image_attribute_labels.txt")
    with pytest.raises(UserError, match=r"/attributes\.txt: got a missing file; .*attributes=false"):
        opened("cub", str(tmp_path))
    rows = rows_of(opened("cub", str(tmp_path), "attributes=false"), "test")
    assert [(row.columns, row.problem) for row in rows] == [({"label": 0}, None), ({"label": 2}, None)]
    folder.write("attributes.txt", cub.files()["attributes.txt"])
    with pytest.raises(UserError, match=r"image_attribute_labels\.txt: got a missing file; .*attributes=false"):
        index_of(opened("cub", str(tmp_path)), "train")


def problems(uri: str, *options: str) -> dict[int, str | None]:
    source = opened("cub", uri, *options)
    return {int(row.name[-5]): row.problem for split in ("train", "test") for row in rows_of(source, split)}


@pytest.mark.parametrize("write", WRITERS)
def test_bad_rows_say_why(write: Callable[[Folder], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = cub.files()
    files[f"CUB_200_2011/images/{cub.name(1)}"] = cub.image(1)[:-50]
    del files[f"CUB_200_2011/images/{cub.name(2)}"]
    boxes = "3 40.0 40.0 5.0 5.0\n\n4 1.0 2.0 0.0 5.0\n5 1.0 nan 3.0 5.0\n1 0 0 9 9\n"
    files["CUB_200_2011/bounding_boxes.txt"] = boxes.encode()
    monkeypatch.setattr(cub, "files", lambda: files)
    write(open_folder(str(tmp_path)))
    expected = {
        1: "a truncated image",
        2: "a missing file",
        3: "a box outside the image",
        4: "no box",
        5: "no box",
    }
    assert problems(str(tmp_path)) == expected
    assert problems(str(tmp_path), "crop=none")[3] is None


def test_attributes_that_are_missing(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    cub.write_folder(folder)
    place = "CUB_200_2011/attributes/image_attribute_labels.txt"
    lines = folder.read(place).decode().splitlines()
    kept = [line for line in lines if not line.startswith(("1 2 ", "4 "))]
    folder.write(
        place, "\n\n".join([*kept, "nonsense", "2 99 1 1 1", "999 1 1 1 1", "1 2", f"{'9' * 5000} 1 1"]).encode()
    )
    assert problems(str(tmp_path)) == {1: "3 attributes, not 4", 2: None, 3: None, 4: "no attributes", 5: None}


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("CUB_200_2011/images.txt", None, "got no images of CUB-200-2011"),
        ("CUB_200_2011/classes.txt", None, r"classes\.txt: got a missing file"),
        ("CUB_200_2011/classes.txt", b"2 a\n3 b\n", r"classes\.txt: got numbers other than 1, 2, \.\.\. or"),
        ("CUB_200_2011/classes.txt", b"", r"classes\.txt: got numbers other than"),
        ("attributes.txt", b"1 a\n2 a\n", r"attributes\.txt: got numbers other than"),
        ("CUB_200_2011/bounding_boxes.txt", None, r"bounding_boxes\.txt: got a missing file"),
        ("CUB_200_2011/images.txt", b"one a/b.jpg\n", r"images\.txt: got the line one a/b\.jpg"),
        ("CUB_200_2011/images.txt", b"1 ../../../etc/passwd\n", r"got the member CUB_200_2011/images/\.\./\.\./"),
        ("CUB_200_2011/images.txt", b"1 a\0b.jpg\n", r"got the member CUB_200_2011/images/a"),
        ("CUB_200_2011/images.txt", b"1 a.jpg\n2 b.jpg\n1 c.jpg\n", r"images\.txt: got the number 1 twice"),
        ("CUB_200_2011/images.txt", b"1 a.jpg\n77 b.jpg\n", r"split\.txt: got no 0 or 1 for image 77"),
        ("CUB_200_2011/images.txt", b"9" * 5000 + b" a.jpg\n", r"images\.txt: got the line 9999"),
        ("CUB_200_2011/image_class_labels.txt", b"1 " + b"9" * 5000, r"labels\.txt: got no class 1\.\.3 for image 1"),
        ("CUB_200_2011/images.txt", b"1 " + b"9" * 300 + b".jpg", "got the name CUB_200_2011/images/9999"),
        ("CUB_200_2011/images.txt", b"1 " + b"9/" * 600 + b".jpg", "got the name CUB_200_2011/images/9/9/"),
        ("attributes.txt", b"1 has_x\n2 label\n", r"attributes\.txt: got an attribute named like another"),
        ("CUB_200_2011/image_class_labels.txt", b"1 4\n", r"labels\.txt: got no class 1\.\.3 for image 1"),
        ("CUB_200_2011/train_test_split.txt", b"1 2\n", r"split\.txt: got no 0 or 1 for image 1"),
    ],
)
def test_files_that_are_not_as_published(name: str, data: bytes | None, says: str, tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    cub.write_folder(folder)
    if data is None:
        folder.remove(name)
    else:
        folder.write(name, data)
    with pytest.raises(UserError, match=says):
        index_of(opened("cub", str(tmp_path)), "test")
