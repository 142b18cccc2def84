"""Parquet tables in the hub's layouts: splits by names, columns and classes by the schema, else by options."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from soda_dist.data.formats.parquet_tables import ImageTables
from soda_dist.data.source import Source, check_image
from soda_dist.data.storage.folder import open_folder
from soda_dist.errors import UserError
from tests.data.written import parquet
from tests.data.written.importing import decoded, index_of, opened, rows_of
from tests.data.written.parquet import FEATURES, put, table


def splits(source: Source) -> list[str]:
    return list(dict.fromkeys(part.split for part in source.parts()))


def test_the_layout_of_the_hub(any_uri: str) -> None:
    parquet.write(open_folder(any_uri))
    source = opened("parquet", any_uri)
    assert splits(source) == ["train", "val", "test"]
    assert source.contents.labels["label"].names == ("cat", "dog", "owl")
    assert [*source.contents.labels] == ["label"]
    assert not source.contents.shuffled
    for split, numbers in parquet.SPLITS.items():
        rows = rows_of(source, "val" if split == "validation" else split)
        assert [row.image for row in rows] == [parquet.image(number) for number in numbers]
        assert [row.columns for row in rows] == [{"label": number % 3} for number in numbers]
    names = [row.name for row in rows_of(source, "train")]
    files = [f"data/train-0000{number}-of-00002.parquet" for number in range(2)]
    assert names == ["0.jpg", f"{files[0]}#1", "2.jpg", f"{files[0]}#3", "4.jpg", f"{files[1]}#1", "6.jpg"]


def test_folders_of_splits_and_files_called_by_their_split(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    put(folder, "default/train/0001.parquet", table(range(4, 6)))
    put(folder, "default/train/0000.parquet", table(range(4)))
    put(folder, "default/test/0000.parquet", table(range(6, 8)))
    put(folder, "flat/train.parquet", table(range(2), features=None, struct=False))
    put(folder, "flat/extra-00000-of-00001.parquet", table(range(3), features=None))
    assert [row.image for row in rows_of(opened("parquet", f"{tmp_path}/default"), "train")] == [
        parquet.image(row) for row in range(6)
    ]
    flat = opened("parquet", f"{tmp_path}/flat")
    assert splits(flat) == ["train", "extra"]
    assert [row.columns["label"] for row in rows_of(flat, "extra")] == [0, 1, 2]
    one = opened("parquet", f"{tmp_path}/flat/train.parquet")
    assert splits(one) == ["train"]
    assert len(rows_of(one, "train")) == 2


def test_rows_that_nobody_split_are_split_by_their_names(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    for number in range(3):
        put(folder, f"part{number}.parquet", table(range(40 * number, 40 * number + 40), struct=False))
    source = opened("parquet", str(tmp_path))
    found = {split: [row.name for row in rows_of(source, split)] for split in ("train", "val", "test")}
    everything = [f"part{number}.parquet#{row}" for number in range(3) for row in range(40)]
    assert sorted(name for names in found.values() for name in names) == sorted(everything)
    assert len(found["train"]) in range(80, 112)
    assert found["val"]
    assert found["test"]
    other = rows_of(opened("parquet", str(tmp_path), "seed=1"), "train")
    assert [row.name for row in other] != found["train"]
    parquet.write(folder.child("hub"))
    again = opened("parquet", f"{tmp_path}/hub", "resplit=true")
    assert sum(len(index_of(again, split)) for split in ("train", "val", "test")) == 13


def test_a_column_without_names_has_numbers(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    put(folder, "train/a.parquet", table(range(3), features=None))
    put(folder, "test/a.parquet", table(range(5), features=None))
    source = opened("parquet", str(tmp_path), "labels=[size]")
    assert source.contents.main_label == "label"
    assert source.contents.labels["label"].names == ("0", "1", "2")
    assert source.contents.labels["size"].names == tuple(str(number) for number in range(13))
    assert [row.columns for row in rows_of(source, "test")][-1] == {"label": 1, "size": 12}


def test_names_of_numbers_beside_the_tables(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    put(folder, "train.parquet", table(range(3), features=None))
    folder.write("classes.txt", b"\xef\xbb\xbfcat\r\ndog\r\nowl\r\n")
    source = opened("parquet", str(tmp_path), "labels=size")
    assert source.contents.labels["label"].names == ("cat", "dog", "owl")
    assert source.contents.labels["size"].names[:2] == ("0", "1"), "names are those of the main label"
    folder.write("classes.txt", b"cat\ndog\n")
    with pytest.raises(UserError, match=r"classes\.txt: got 2 names; allowed: 3, one for each number of label"):
        opened("parquet", str(tmp_path))


def test_columns_by_their_options(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    features = {
        "picture": {"_type": "Image"},
        "mask": {"_type": "Image"},
        "fine": {"names": ["a", "b"], "_type": "ClassLabel"},
    }
    features["coarse"] = {"names": ["x"], "_type": "ClassLabel"}
    made = table(range(2), features=None)
    made = made.rename_columns(["picture", "fine", "coarse", "caption"]).append_column("mask", made["image"])
    made = made.append_column("thumbnail", made["picture"])
    put(
        folder,
        "train.parquet",
        made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}),
    )
    with pytest.raises(
        UserError, match=r"image: got columns picture.*; allowed: picture, mask, thumbnail; .*image=picture"
    ):
        opened("parquet", str(tmp_path))
    with pytest.raises(UserError, match=r"label: got nothing, and classes fine, coarse; .*set label=fine"):
        opened("parquet", str(tmp_path), "image=picture")
    source = opened("parquet", str(tmp_path), "image=picture", "label=fine")
    assert {name: label.names for name, label in source.contents.labels.items()} == {"fine": ("a", "b")}
    assert [row.columns["fine"] for row in rows_of(source, "train")] == [0, 1]


def test_a_table_without_labels(tmp_path: Path) -> None:
    put(open_folder(str(tmp_path)), "train.parquet", table(range(3), features=None).drop_columns(["label", "size"]))
    source = opened("parquet", str(tmp_path))
    assert (source.contents.labels, source.contents.main_label) == ({}, None)
    assert [row.columns for row in rows_of(source, "train")] == [{}, {}, {}]


@pytest.mark.parametrize("metadata", [b"{", b"[]", b'{"info": null}', b'{"info": {"features": {"label": [1]}}}'])
def test_a_schema_that_cannot_be_understood_is_ignored(metadata: bytes, tmp_path: Path) -> None:
    made = table(range(3)).replace_schema_metadata({"huggingface": metadata})
    put(open_folder(str(tmp_path)), "train.parquet", made)
    assert opened("parquet", str(tmp_path)).contents.labels["label"].names == ("0", "1", "2")


def test_rows_in_any_order_read_each_group_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet.write(open_folder(str(tmp_path)))
    source = opened("parquet", str(tmp_path), "shuffle=true")
    assert source.contents.shuffled
    read, cells = [], ImageTables._cells
    monkeypatch.setattr(ImageTables, "_cells", lambda *args: read.append(args[1:3]) or cells(*args))
    order = [6, 0, 5, 1, 2, 2, 3, 4, 0]
    assert [row.image for row in rows_of(source, "train", order)] == [parquet.image(row) for row in order]
    assert len(read) == len(set(read)) == 4


def test_bad_cells_are_rows_with_a_problem(tmp_path: Path) -> None:
    cells = [None, {"bytes": None, "path": "x.jpg"}, {"bytes": b"", "path": None}, *[{"bytes": b"1", "path": None}] * 4]
    made = pa.table({"image": cells, "label": [0, 0, 0, 3, -1, None, 2]})
    schema = {"huggingface": json.dumps({"info": {"features": FEATURES}})}
    put(open_folder(str(tmp_path)), "train.parquet", made.replace_schema_metadata(schema))
    problems = [row.problem for row in rows_of(opened("parquet", str(tmp_path)), "train")]
    assert problems == ["no image bytes"] * 3 + ["label 3, not 0..2", "no label", "no label", None]
    kept = rows_of(opened("parquet", str(tmp_path), "unlabelled=import"), "train")
    assert [row.problem for row in kept] == ["no image bytes"] * 3 + ["label 3, not 0..2", None, None, None]
    assert [row.columns["label"] for row in kept[4:]] == [None, None, 2]


def test_texts_that_are_not_utf8(tmp_path: Path) -> None:
    """Of a file's path, and of a class."""
    folder = open_folder(str(tmp_path))
    sound = table(range(4))
    paths = pa.Array.from_buffers(
        pa.string(), 4, [None, pa.array(["wxyz"[i] for i in range(4)]).buffers()[1], pa.py_buffer(b"a\xe9bc")]
    )
    cells = pa.StructArray.from_arrays([sound["image"].combine_chunks().field("bytes"), paths], ["bytes", "path"])
    put(folder, "train.parquet", sound.set_column(0, "image", cells))
    with pytest.raises(UserError, match=r"train\.parquet: got not valid Parquet \('utf-8' codec"):
        rows_of(opened("parquet", str(tmp_path)), "train")
    features = {**FEATURES, "label": {"names": ["\ud800", "b", "c"], "_type": "ClassLabel"}}
    put(folder, "train.parquet", table(range(4), features=features))
    assert opened("parquet", str(tmp_path)).contents.labels["label"].names == ("\\ud800", "b", "c")


@pytest.mark.parametrize("column", ["image", "label", "caption"])
def test_two_columns_of_one_name(column: str, tmp_path: Path) -> None:
    made = table(range(4))
    put(open_folder(str(tmp_path)), "train.parquet", made.append_column(column, made[column]))
    with pytest.raises(UserError, match=rf"train\.parquet: got two columns {column}"):
        opened("parquet", str(tmp_path))


def test_tables_that_are_not_images(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    with pytest.raises(UserError, match="got no Parquet file"):
        opened("parquet", str(tmp_path))
    with pytest.raises(UserError, match="got no Parquet file"):
        opened("parquet", f"{tmp_path}/none.parquet")
    folder.write("a/train.parquet", b"PAR1 but not really")
    with pytest.raises(UserError, match=r"a/train\.parquet: got not valid Parquet"):
        opened("parquet", str(tmp_path))
    put(folder, "a/train.parquet", table(range(2)).select(["label", "caption"]))
    with pytest.raises(UserError, match="image: got columns label, caption; allowed: a column of bytes"):
        opened("parquet", str(tmp_path))
    put(folder, "a/train.parquet", table(range(2)))
    for option, says in (
        ("image=label", "image: got label; allowed: image; set image=image"),
        ("label=breed", "label: got breed; allowed: label, size, caption; set label=label"),
        ("labels=breed", "label: got breed; allowed: label, size, caption"),
    ):
        with pytest.raises(UserError, match=says):
            opened("parquet", str(tmp_path), option)
    put(folder, "b/train.parquet", table(range(2)))
    with pytest.raises(UserError, match=r"several tables: a, b; allowed: one; give the folder of one, such as \S+/b"):
        opened("parquet", str(tmp_path))
    put(folder, "a/more.parquet", table(range(2)))
    with pytest.raises(UserError, match=r"a/more\.parquet: got a name without a split"):
        opened("parquet", f"{tmp_path}/a")


def test_numbers_that_are_no_classes(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    made = table(range(2), features=None)
    cases = {
        "numbers 1..1099511627776, outside 0..99999": pa.array([2**40, 1]),
        "numbers -5..-5, outside 0..99999": pa.array([-5, -1]),
        "no value in any row": pa.array([None, None], pa.int64()),
        "the value 0.5, no whole number": pa.array([0.5, 1]),
    }
    for reason, values in cases.items():
        put(folder, "train.parquet", made.set_column(1, "label", values))
        source = opened("parquet", str(tmp_path))
        assert not source.contents.labels
        assert f"no labels: the column label has {reason}" in source.contents.notes
        with pytest.raises(UserError, match=f"label: got label, with {reason}; .* or set label=none"):
            opened("parquet", str(tmp_path), "label=label")


LABELS = {
    "texts": (pa.array(["dog", "caf\u00e9", "cafe\u0301", ""]), ("caf\u00e9", "dog"), [1, 0, 0, None]),
    "dictionary": (pa.array(["b", "a", "b", None]).dictionary_encode(), ("a", "b"), [1, 0, 1, None]),
    "booleans": (pa.array([True, False, True, None]), ("false", "true"), [1, 0, 1, None]),
    "whole floats": (pa.array([2.0, 0.0, float("nan"), -1.0]), ("0", "1", "2"), [2, 0, None, None]),
    "small unsigned": (pa.array([1, 0, 1, 0], pa.uint8()), ("0", "1"), [1, 0, 1, 0]),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_every_type(kind: str, tmp_path: Path) -> None:
    values, names, classes = LABELS[kind]
    made = table(range(4), features=None)
    put(open_folder(str(tmp_path)), "train.parquet", made.set_column(1, "label", values))
    source = opened("parquet", str(tmp_path), "unlabelled=import")
    assert (source.contents.labels["label"].names, source.contents.main_label) == (names, "label")
    assert index_of(source, "train")["label"].to_pylist() == classes
    assert [row.columns["label"] for row in rows_of(source, "train")] == classes


def test_declared_names_of_one_unicode_form_are_one_class(tmp_path: Path) -> None:
    features = {**FEATURES, "label": {"names": ["caf\u00e9", "cafe\u0301", "x"], "_type": "ClassLabel"}}
    put(open_folder(str(tmp_path)), "train.parquet", table(range(3), features=features))
    source = opened("parquet", str(tmp_path))
    assert source.contents.labels["label"].names == ("caf\u00e9", "x")
    assert index_of(source, "train")["label"].to_pylist() == [0, 0, 1]


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    made = table(range(2), features=None)
    put(folder, "train.parquet", made)
    (note,) = opened("parquet", str(tmp_path)).contents.notes
    assert note == "columns left out: size (int32), caption (string); label=size or labels=size imports one"
    put(folder, "train.parquet", made.set_column(1, "label", pa.array([[1], [2]])))
    first, _ = opened("parquet", str(tmp_path), "label=none").contents.notes
    assert first == "no label label: list<element: int64>, not whole numbers, texts or booleans"
    assert opened("parquet", str(tmp_path), "labels=size").contents.main_label is None


@pytest.mark.parametrize("mode", ["P", "CMYK", "I;16"])
def test_images_that_datasets_writes_as_tiff_become_png(mode: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9), np.uint8)
    if mode == "I;16":
        image = Image.fromarray(pixels.astype(np.uint16) << 8 | 77)
        expected = np.repeat(pixels[..., None], 3, 2)
    else:
        image = Image.fromarray(np.stack([pixels, pixels.T[:8, :8].repeat(2, 1)[:, :9], pixels], 2)).convert(mode)
        expected = np.asarray(image.convert("RGB"))
    sink = io.BytesIO()
    image.save(sink, "TIFF")
    cells = [{"bytes": sink.getvalue(), "path": None}, {"bytes": b"II*\0damaged", "path": None}]
    put(open_folder(str(tmp_path)), "train.parquet", pa.table({"image": cells, "label": [0, 1]}))
    good, bad = rows_of(opened("parquet", str(tmp_path)), "train")
    assert np.array_equal(decoded(good.image), expected) and check_image(good.image) is None
    assert check_image(bad.image) is not None


def test_split_names_in_any_case_and_hidden_files(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    for name in ("Train.parquet", "VALIDATION-00000-of-00001.parquet", "Test/0.parquet"):
        put(folder, name, table(range(2)))
    for name in ("._Train.parquet", "__MACOSX/Train.parquet", "@eaDir/Train.parquet"):
        folder.write(name, b"no table")
    assert splits(opened("parquet", str(tmp_path))) == ["train", "val", "test"]


def test_a_file_of_other_columns_than_the_first(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    put(folder, "train/a.parquet", table(range(2)))
    put(folder, "train/b.parquet", table(range(2)).drop_columns(["label"]))
    source = opened("parquet", str(tmp_path))
    assert index_of(source, "train")["label"].to_pylist() == [0, 1, None, None]
    put(folder, "train/b.parquet", table(range(2)).drop_columns(["image"]))
    with pytest.raises(UserError, match=r"train/b\.parquet: got columns label, size, caption; allowed: one of image"):
        index_of(source, "train")


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    put(folder, "train/a.parquet", table(range(2)))
    put(folder, "train/b.parquet", table(range(2)).slice(0, 0))
    index = index_of(opened("parquet", str(tmp_path)), "train")
    assert np.array_equal(index["soda.row"].to_numpy(), [0, 1])
