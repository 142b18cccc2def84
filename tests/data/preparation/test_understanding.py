"""What an import says of a source and refuses before it reads an image, in this process."""

import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from soda_dist.data.preparation import importer, prepare, survey
from soda_dist.data.shards import MANIFEST, ShardReader, read_manifest
from soda_dist.data.sources import SOURCES, describe, parse_options
from soda_dist.data.storage.folder import open_folder
from soda_dist.errors import UserError
from tests.data.written import layouts, multiview, parquet
from tests.data.written.pictures import picture, tar_of

NAMES = ["tench", "goldfish", "shark"]
FEATURES = {"image": {"_type": "Image"}, "label": {"names": NAMES, "_type": "ClassLabel"}}


def imported(kind: str, source: Path, *options: str) -> tuple[dict[str, list[Any]], list[str]]:
    """The labels of each split of a finished import, and what it said."""
    lines: list[str] = []
    folder = open_folder(prepare(kind, str(source), f"{source}-data", options, say=lines.append))
    manifest = read_manifest(folder)
    named = manifest.main_label
    readers = {split: ShardReader(folder, manifest, split) for split in manifest.splits}
    columns = {split: reader.column(named or "name").to_pylist() for split, reader in readers.items()}
    return columns if named else {split: [None] * len(found) for split, found in columns.items()}, lines


def refused(kind: str, source: Path, *options: str) -> str:
    """The message of a refusal, after which no image was read and another try is free to choose."""
    data, read = f"{source}-data", list[str]()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError) as caught:
        patch.setattr(importer, "make_shard", lambda *_: read.append("images"))
        prepare(kind, str(source), data, options)
    assert not read and not (Path(data) / MANIFEST).exists() and "\n" not in str(caught.value)
    assert {entry.name for entry in open_folder(data).list()} <= {"_import/import.json"}
    return str(caught.value)


def tables(source: Path, *, declared: bool = True, **labels: list[Any]) -> Path:
    """A Parquet file for each split."""
    for split, values in labels.items():
        made = parquet.table(range(len(values)), features=FEATURES if declared else None)
        made = made.select(["image", "label"]).set_column(1, "label", pa.array(values))
        parquet.put(open_folder(str(source)), f"data/{split}-00000-of-00001.parquet", made)
    return source


def folders(source: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        open_folder(str(source)).write(name, picture(number))
    return source


def tars(source: Path, **labels: list[str | None]) -> Path:
    """A tar for each split, with a `cls` for each text."""
    for split, texts in labels.items():
        files: dict[str, bytes] = {}
        for at, text in enumerate(texts):
            files |= {f"{at}.jpg": picture(at), **({f"{at}.cls": text.encode()} if text is not None else {})}
        open_folder(str(source)).write(f"{split}.tar", tar_of(files))
    return source


def without_column(source: Path) -> Path:
    """A test table that lacks the column of labels."""
    tables(source, train=[0, 1, 2], validation=[1])
    made = parquet.table(range(2), features=FEATURES).select(["image"])
    parquet.put(open_folder(str(source)), "data/test-00000-of-00001.parquet", made)
    return source


UNLABELLED: dict[str, tuple[str, Callable[[Path], Path], tuple[str, ...]]] = {
    "numbers": ("parquet", lambda at: tables(at, train=[0, 1, 2], validation=[1], test=[-1, -1]), ()),
    "nulls": ("parquet", lambda at: tables(at, train=[0, 1, 2], validation=[1], test=[None, None]), ()),
    "texts": ("parquet", lambda at: tables(at, declared=False, train=["a", "b", "c"], val=["b"], test=["", None]), ()),
    "tars": ("webdataset", lambda at: tars(at, train=["0", "1", "2"], val=["1"], test=[None, None]), ("classes=3",)),
    "tars of -1": (
        "webdataset",
        lambda at: tars(at, train=["0", "1", "2"], val=["1"], test=["-1"] * 2),
        ("classes=3",),
    ),
    "tables without the column": ("parquet", without_column, ()),
    "folders": (
        "folder",
        lambda at: folders(at, *(f"train/{c}/1.jpg" for c in "abc"), "val/b/1.jpg", "test/1.jpg", "test/2.jpg"),
        (),
    ),
}


@pytest.mark.parametrize("case", UNLABELLED)
def test_a_split_without_labels_is_left_out_or_imported_without(case: str, tmp_path: Path) -> None:
    kind, write, options = UNLABELLED[case]
    found, said = imported(kind, write(tmp_path / "a"), *options)
    assert {split: sorted(values) for split, values in found.items()} == {"train": [0, 1, 2], "val": [1]}
    reason = " (no cls)" if kind == "webdataset" else ""
    assert f"test: none of its 2 rows has a label{reason}: left out; unlabelled=import imports it without" in said
    found, said = imported(kind, write(tmp_path / "b"), *options, "unlabelled=import")
    assert sorted(found["train"]) == [0, 1, 2] and found["test"] == [None, None]
    assert "test: none of its 2 rows has a label: imported without" in said
    found, said = imported(kind, write(tmp_path / "c"), "classes=false" if kind == "folder" else "label=none")
    assert {split: len(values) for split, values in found.items()} == {"train": 3, "val": 1, "test": 2}
    assert any("no labels" in line for line in said)


CONTRADICTIONS: dict[str, tuple[str, Callable[[Path], Path], tuple[str, ...], str]] = {
    "a class that train lacks, in a table": (
        *("parquet", lambda at: tables(at, train=[0, 1], test=[0, 2]), ()),
        r"got test has 1 class \(shark\) of label, which train lacks; .*label=none",
    ),
    "a class that train lacks, in tars": (
        *("webdataset", lambda at: tars(at, train=["0", "1"], val=["2"]), ("classes=3",)),
        r"got val has 1 class \(2\) of label, which train lacks",
    ),
    "a class folder that train lacks": (
        *("folder", lambda at: folders(at, "train/a/1.jpg", "train/b/1.jpg", "val/c/1.jpg"), ()),
        "got the class c in val, which train lacks",
    ),
    "no labels in train": (
        *("parquet", lambda at: tables(at, train=[-1, -1], test=[0, 1]), ()),
        "got no label in any row of train; .*label=none.*unlabelled=import",
    ),
    "no labels at all": (
        *("webdataset", lambda at: tars(at, train=["x", "y"], test=["z"]), ("classes=3",)),
        r"got no label in any row of train, test \(a label outside the 3 classes\)",
    ),
    "an empty split": ("parquet", lambda at: tables(at, train=[0, 1], test=[]), (), "got no images in test"),
    "a link that repeats a class": (
        *("folder", lambda at: linked(folders(at, "train/cat/1.jpg", "train/dog/2.jpg"), "train/kitty"), ()),
        "kitty: got a link to the files of train/cat; allowed: each file once",
    ),
}


def linked(source: Path, name: str) -> Path:
    (source / name).symlink_to("cat")
    return source


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_contradictions_are_refused_before_an_image_is_read(case: str, tmp_path: Path) -> None:
    kind, write, options, says = CONTRADICTIONS[case]
    assert re.search(says, message := refused(kind, write(tmp_path / "a"), *options)), message


def test_after_a_refusal_the_same_folder_takes_another_try(tmp_path: Path) -> None:
    source = tables(tmp_path / "a", train=[0, 1], test=[0, 2])
    refused("parquet", source)
    tables(source, train=[0, 1, 2])
    assert sorted(imported("parquet", source)[0]["train"]) == [0, 1, 2], "a corrected source is listed anew"
    other = tables(tmp_path / "b", train=[0, 1], test=[0, 2])
    refused("parquet", other)
    assert imported("parquet", other, "label=none")[0] == {"train": [None] * 2, "test": [None] * 2}


def test_rows_without_a_label_are_counted_and_rejected(tmp_path: Path) -> None:
    found, said = imported("parquet", tables(tmp_path / "a", train=[0, 1, 2, -1, 7], test=[0]))
    assert found["train"] == [0, 1, 2]
    assert "train: 2 of 5 rows have no label (label 7, not 0..2)" in said


def test_a_link_around_itself_lists_each_file_once(tmp_path: Path) -> None:
    places = (f"{split}/{name}" for split in ("train", "val") for name in ("cat", "dog"))
    source = folders(tmp_path / "a", *(f"{place}/{number}.jpg" for place in places for number in "12"))
    (source / "train/cat/up").symlink_to("..")
    (source / "train/loop").symlink_to(".")
    assert {split: sorted(v) for split, v in imported("folder", source)[0].items()} == {
        "train": [0, 0, 1, 1],
        "val": [0, 0, 1, 1],
    }


def test_drawn_splits_may_lack_a_class_or_a_split(tmp_path: Path) -> None:
    source = folders(tmp_path / "a", *(f"{name}/{number}.jpg" for name in "ab" for number in range(3)))
    found, said = imported("folder", source)
    assert sum(map(len, found.values())) == 6
    assert any(line.endswith(" rows, splits drawn; label: 2 classes (a, b); no cameras") for line in said)
    files = {f"{at}.jpg": picture(at) for at in range(2)}
    open_folder(f"{tmp_path}/b").write("a.tar", tar_of(files))
    found, said = imported("webdataset", tmp_path / "b")
    assert sum(map(len, found.values())) == 2
    assert any(line.endswith("split: too few rows for one to be drawn") for line in said)


def test_a_limit_draws_rows_by_name(tmp_path: Path) -> None:
    names = [f"{name}/{number}.jpg" for name in "ab" for number in range(30)]
    source = folders(tmp_path / "a", *(f"{split}/{name}" for split in ("train", "test") for name in names))
    drawn, said = imported("folder", source, "limit=20")
    assert {split: len(labels) for split, labels in drawn.items()} == {"train": 20, "test": 20}
    assert any(line.startswith("found 20 train, 20 test rows") for line in said)
    assert "limit: at most 20 rows of a split, drawn by name with seed 0" in said
    assert all(set(labels) == {0, 1} for labels in drawn.values())
    assert drawn["train"] != drawn["test"]


def test_a_limit_draws_the_same_rows_of_a_longer_list() -> None:
    def drawn(count: int, seed: int = 0) -> list[str]:
        index = pa.table({"name": [f"{number}.jpg" for number in range(count)]})
        options = parse_options("folder", ["limit=10", f"seed={seed}"])
        return importer._limited(index, "train", options, by_object=False)["name"].to_pylist()

    assert len(set(drawn(100)) & set(drawn(110))) >= 8
    assert drawn(100, seed=1) != drawn(100)
    assert drawn(10) == drawn(10, seed=1) == [f"{number}.jpg" for number in range(10)]


def test_a_limit_keeps_the_views_of_an_object_together(tmp_path: Path) -> None:
    written = open_folder(f"{tmp_path}/a")
    multiview.write(written)
    lines = list[str]()
    survey("multiview", written.uri, ["limit=3"], say=lines.append)
    assert "limit: at most 3 rows of a split, the first rows" in lines


def test_by_a_limit_training_may_lack_a_class(tmp_path: Path) -> None:
    found, said = imported("parquet", tables(tmp_path / "a", train=[0, 1, 2, 0], test=[2, 1, 0]), "limit=1")
    assert {split: len(labels) for split, labels in found.items()} == {"train": 1, "test": 1}
    assert any("classes of label" in line for line in said)


def test_names_of_numbers_are_given_as_an_option(tmp_path: Path) -> None:
    source = tables(tmp_path / "a", declared=False, train=[0, 1, 2, 0], test=[0, 1])
    found = "found 4 train, 2 test rows; label: 3 classes (hen, 3, owl); no cameras"
    assert found in imported("parquet", source, "names=[hen,3,owl]")[1]
    source = tables(tmp_path / "c", declared=False, train=[0, 1, 2, 0], test=[0, 1])
    assert "names: got 2 names; allowed: 3, one for each number of label" in refused("parquet", source, "names=[a,b]")
    assert "names: got names, but no label" in refused("parquet", source, "names=[a,b,c]", "label=none")
    texts = tables(tmp_path / "b", declared=False, train=["x", "y"], test=["x"])
    assert "names: got names for label, whose texts are names" in refused("parquet", texts, "names=[a,b]")


SAID = {
    "multiview": "objects with cameras",
    "cub": "label: 3 classes",
    "celebahq": "attributes",
    "smallnorb": "objects without cameras",
    "shapes3d": "shape: 2 values (0, 1)",
    "cifar10": "label: 10 classes (airplane, automobile, bird, cat, deer, ...); no cameras",
}


@pytest.mark.parametrize("name", SAID)
def test_a_survey_says_what_was_understood_and_writes_nothing(name: str, tmp_path: Path) -> None:
    layout, lines = layouts.LAYOUTS[name], list[str]()
    for file, content in layout.packed(layout.files()).items():
        open_folder(f"{tmp_path}/source").write(file, content)
    before = sorted(tmp_path.rglob("*"))
    with layouts.small():
        assert survey(layout.kind, f"{tmp_path}/source", layout.options, say=lines.append) == f"{tmp_path}/source"
    assert sorted(tmp_path.rglob("*")) == before
    assert any(line.startswith("found ") and SAID[name] in line for line in lines), lines


def test_objects_named_in_another_unicode_form(tmp_path: Path) -> None:
    """As macOS stores names, beside lists that were typed."""
    memory = layouts.Memory()
    multiview.write(memory)  # type: ignore[arg-type]
    objects = sorted({name.partition("/")[0] for name in memory.files})
    for name, data in memory.files.items():
        stored = unicodedata.normalize("NFD", name.replace(objects[0], "caf\u00e9"))
        open_folder(f"{tmp_path}/a").write(stored, data)
    lists = {"labels.json": {"caf\u00e9": "x", **dict.fromkeys(objects[1:], "y")}}
    lists["splits.json"] = {"train": ["caf\u00e9"], "test": objects[1:]}  # type: ignore[dict-item]
    for name, value in lists.items():
        open_folder(f"{tmp_path}/a").write_json(name, value)
    found, _ = imported("multiview", tmp_path / "a")
    assert set(found["train"]) == {0} and set(found["test"]) == {1}


@pytest.mark.parametrize("kind", SOURCES)
def test_each_kind_describes_its_options(kind: str) -> None:
    text = describe(kind)
    assert all(f"  {name}=" in text for name in parse_options(kind, ()).model_dump())
    assert text.splitlines()[0].endswith((".", ","))
