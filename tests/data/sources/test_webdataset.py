"""WebDataset's tars: samples, their labels, splits by name or by hash, and what is wrong with them."""

from pathlib import Path

import pytest

from soda_dist.data.storage.folder import open_folder
from soda_dist.errors import UserError
from tests.data.written import webdataset
from tests.data.written.importing import opened, rows_of
from tests.data.written.pictures import picture, tar_of


@pytest.mark.parametrize("options", [(), ("label=cls",), ("label=json:label",), ("label=json:name",)])
def test_samples_and_their_labels(options: tuple[str, ...], source_uri: str) -> None:
    webdataset.write(open_folder(source_uri))
    source = opened("webdataset", source_uri, *options)
    assert source.contents.labels["label"].names == tuple(f"class {number}" for number in range(5))
    assert not source.contents.shuffled
    rows = rows_of(source, "train")
    assert [row.name for row in rows] == [f"set-train-00000{number // 6}.tar/v1.0/{number:05d}" for number in range(10)]
    assert [row.image for row in rows] == [picture(n, "PNG" if n % 2 else "JPEG") for n in range(10)]
    assert [row.columns["label"] for row in rows] == [number % 5 for number in range(10)]
    assert [row.columns["label"] for row in rows_of(source, "val")] == [0, 1, 2]
    shuffled = rows_of(source, "train", [9, 0, 5, 5])
    assert [row.image for row in shuffled] == [rows[at].image for at in (9, 0, 5, 5)]


def test_tars_without_splits_are_split_by_the_keys_hash(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    folder.write("a.tar", webdataset.tar(range(150)))
    folder.write("b.tar", webdataset.tar(range(150, 200)))
    source = opened("webdataset", str(tmp_path), "classes=5", "shuffle=true")
    assert source.contents.shuffled
    names = {split: [row.name for row in rows_of(source, split)] for split in ("train", "val", "test")}
    assert len(set().union(*names.values())) == sum(map(len, names.values())) == 200
    assert 145 <= len(names["train"]) <= 175 and len(names["val"]) >= 10 and len(names["test"]) >= 10
    other = opened("webdataset", str(tmp_path), "classes=5", "seed=1")
    assert {row.name for row in rows_of(other, "val")} != set(names["val"])


def test_samples_without_labels_need_no_classes(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    folder.write(
        "train/0.tar", tar_of({"a.jpg": picture(1), "a.txt": b"words", "b.JPG": picture(2), "c.txt": b"alone"})
    )
    source = opened("webdataset", str(tmp_path))
    assert not source.contents.columns and not source.contents.labels
    assert [(row.name, row.problem) for row in rows_of(source, "train")] == [
        ("train/0.tar/a", None),
        ("train/0.tar/b", None),
        ("train/0.tar/c", "no image"),
    ]


def test_bad_samples_are_rows_with_a_problem(tmp_path: Path) -> None:
    image = picture(1)
    files = {
        "a.jpg": image,
        "a.cls": b"4",
        "b.jpg": image,
        "c.jpg": image,
        "c.cls": b"5",
        "d.jpg": image,
        "d.cls": b"x",
    }
    files |= {"e.cls": b"1", "f.jpg": image, "f.cls": b" 2\n", "g.jpg": image, "g.cls": b""}
    open_folder(str(tmp_path)).write("train.tar", tar_of(files))
    rows = rows_of(opened("webdataset", str(tmp_path), "classes=5"), "train")
    none = "a label outside the 5 classes"
    assert [row.problem for row in rows] == [None, "no cls", none, none, "no image", None, "no cls"]
    assert [row.columns["label"] for row in rows] == [4, None, None, None, 1, 2, None]


def test_json_of_any_kind_is_read_without_harm(tmp_path: Path) -> None:
    files: dict[str, bytes] = {}
    for key, told in {"a": b'{"y": 1}', "b": b"[1]", "c": b"{", "d": b'{"y": null}', "e": b'{"y": [2]}'}.items():
        files |= {f"{key}.jpg": picture(1), f"{key}.json": told}
    files |= {"f.jpg": picture(1), "f.json": b"[" * 100_000}
    open_folder(str(tmp_path)).write("train.tar", tar_of(files))
    rows = rows_of(opened("webdataset", str(tmp_path), "classes=3", "label=json:y"), "train")
    assert [row.columns["label"] for row in rows] == [1, None, None, None, None, None]


@pytest.mark.parametrize(
    ("told", "label"),
    [
        *[("2", 2), ("2.0", 2), ('"2"', 2), ('" 2 "', 2), ("11", 11), ("12", None), ("-1", None)],
        *[("1.7", None), ("1e-320", None), ("1e999", None), ("NaN", None), ("1" + "0" * 400, None)],
        *[("true", None), ('"1_0"', None), ('"\\u0661"', None), ('"-0"', None), ('"2.0"', None)],
    ],
)
def test_only_whole_numbers_are_classes(told: str, label: int | None, tmp_path: Path) -> None:
    files = {"a.jpg": picture(1), "a.json": f'{{"y": {told}}}'.encode()}
    open_folder(str(tmp_path)).write("train.tar", tar_of(files))
    (row,) = rows_of(opened("webdataset", str(tmp_path), "classes=12", "label=json:y"), "train")
    assert row.columns["label"] == label
    assert (row.problem is None) == (label is not None)


@pytest.mark.parametrize(
    ("files", "options", "says"),
    [
        ({}, (), r"got no \.tar files"),
        ({"a.tar.gz": b"x"}, (), r"unpack \.tar\.gz files to \.tar"),
        ({"train.tar": webdataset.tar(range(1)), "x.tar": b""}, (), r"x\.tar: got a tar without a split"),
        ({"train/x-test.tar": webdataset.tar(range(1))}, (), "got a name with test and train"),
        ({"train.tar": webdataset.tar(range(1))}, (), "classes: got nothing"),
        ({"train.tar": webdataset.tar(range(1)), "classes.txt": b"a\na\n"}, (), "got 2 names, 1 different"),
        ({"train.tar": webdataset.tar(range(1)), "classes.txt": b"a\nb\n"}, ("classes=3",), "allowed: 3 names"),
        (
            {"train.tar": webdataset.tar(range(1)), "classes.txt": b"caf\xe9\n"},
            (),
            r"classes\.txt: got text that is not",
        ),
        ({"train.tar": b"no tar" * 200}, ("label=none",), "got not a valid tar"),
        ({"train.tar": tar_of({"../a.jpg": b"1"})}, ("label=none",), r"got the member \.\./a\.jpg"),
        ({"train.tar": tar_of({"a.jpg": b"1"}, links={"b.jpg": "a.jpg"})}, ("label=none",), r"got a link, b\.jpg"),
        ({"train.tar": webdataset.tar(range(1))}, ("label=json",), "label: got"),
    ],
    ids=lambda value: None if isinstance(value, str) else "x",
)
def test_wrong_folders(files: dict[str, bytes], options: tuple[str, ...], says: str, tmp_path: Path) -> None:
    for name, data in files.items():
        open_folder(str(tmp_path)).write(name, data)
    with pytest.raises(UserError, match=says) as raised:
        rows_of(opened("webdataset", str(tmp_path), *options), "train")
    assert "\n" not in str(raised.value)


def test_hidden_and_meta_members_are_no_samples(tmp_path: Path) -> None:
    files: dict[str, bytes] = {"__key__": b"x", "__MACOSX/a.jpg": b"x", "Thumbs.db": b"x"}
    for name, data in (
        ("./a.jpg", picture(1)),
        ("./a.cls", b"\xef\xbb\xbf1\r\n"),
        ("b.jpg", picture(2)),
        ("b.cls", b"0"),
    ):
        place, _, base = name.rpartition("/")
        files |= {f"{place}/._{base}".lstrip("/"): b"\0\5\x16\7", name: data}
    open_folder(str(tmp_path)).write("train.tar", tar_of(files))
    open_folder(str(tmp_path)).write("._train.tar", b"\0\5\x16\7")
    rows = rows_of(opened("webdataset", str(tmp_path), "classes=2"), "train")
    assert [(row.problem, row.image, row.columns["label"]) for row in rows] == [
        (None, picture(1), 1),
        (None, picture(2), 0),
    ]


@pytest.mark.parametrize("told", [b"\xef\xbb\xbfzebra\r\napple\r\n\r\nn01\r\n10\r\n2\r\n", b"zebra\napple\nn01\n10\n2"])
def test_names_that_are_numbers_are_told_by_the_whole_set(told: bytes, tmp_path: Path) -> None:
    def labels(texts: list[str], *more: str) -> tuple[list[int | None], tuple[str, ...]]:
        for name, found in (("train", texts), ("val", [*more])):
            files: dict[str, bytes] = {}
            for at, text in enumerate(found):
                files |= {f"{at}.jpg": picture(at), f"{at}.cls": text.encode()}
            open_folder(str(tmp_path)).write(f"{name}.tar", tar_of(files))
        open_folder(str(tmp_path)).write("classes.txt", told)
        source = opened("webdataset", str(tmp_path))
        assert source.contents.labels["label"].names == ("zebra", "apple", "n01", "10", "2")
        return [row.columns["label"] for row in rows_of(source, "train")], source.contents.notes

    numbers, notes = labels(["2", "4", "0"], "1")
    assert numbers == [2, 4, 0]
    assert notes == ("labels are read as numbers: 2 is class number 2",)
    assert labels(["2", "10", "1"], "2")[0] == [4, 3, None]
    names, notes = labels(["2"] * 40, *["2"] * 40, "zebra")
    assert names == [4] * 40 and notes == ("labels are read as names: 2 is the class named 2",)


def test_keys_of_others(tmp_path: Path) -> None:
    files: dict[str, bytes] = {}
    for at in range(3):
        files |= {f"{at}.mask.png": picture(9, "PNG"), f"{at}.input.png": picture(at, "PNG"), f"{at}.txt": b"a cat"}
        files |= {f"{at}.target.cls": str(at).encode(), f"{at}.json": b'{"n": 1}'}
    open_folder(str(tmp_path)).write("train.tar", tar_of(files))
    rows = rows_of(opened("webdataset", str(tmp_path), "classes=3"), "train")
    assert [(row.image, row.columns["label"]) for row in rows] == [(picture(at, "PNG"), at) for at in range(3)]
    rows = rows_of(opened("webdataset", str(tmp_path), "label=none", "image=mask.png"), "train")
    assert [row.image for row in rows] == [picture(9, "PNG")] * 3
    open_folder(str(tmp_path)).write("train.tar", tar_of({"a.left.png": picture(1), "a.right.png": picture(2)}))
    with pytest.raises(
        UserError, match=r"image: got nothing, and samples with left\.png, right\.png; .*image=left\.png"
    ):
        opened("webdataset", str(tmp_path))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("classes=3",), "classes: got 3, but the first samples have no cls; .* set label=json:y, or another of y, n"),
        (("classes=3", "label=none"), "classes: got 3, but label=none"),
        (("label=cls", "classes=3"), "label: got cls; allowed: members of the first samples: jpg, json, txt"),
        (("image=tif",), "image: got tif; allowed: a member of the first samples"),
    ],
)
def test_options_that_nothing_would_use(options: tuple[str, ...], says: str, tmp_path: Path) -> None:
    files = {"a.jpg": picture(1), "a.json": b'{"y": 1, "n": "x", "z": [1]}', "a.txt": b"x"}
    open_folder(str(tmp_path)).write("train.tar", tar_of(files))
    open_folder(str(tmp_path)).write("classes.txt", b"a\nb\n")
    with pytest.raises(UserError, match=says):
        opened("webdataset", str(tmp_path), *options)
    assert opened("webdataset", str(tmp_path)).contents.notes == (
        "no labels, since the samples have no cls; json is not read: set label=json:y, or another of y, n",
        "classes.txt is not used",
    )
