"""LSUN's databases, in .zips and unpacked: published and drawn splits, several categories, records that are cut."""

import errno
import zipfile
from pathlib import Path

import pytest

from soda_dist.data.formats import deflate_seek, seekable_file
from soda_dist.data.formats.deflate_seek import DeflatedMember
from soda_dist.data.formats.hashed_splits import split_of
from soda_dist.data.formats.seekable_file import SeekableFile
from soda_dist.data.source import Row, check_image
from soda_dist.data.storage.folder import open_folder
from soda_dist.errors import UserError
from tests.data.written import lsun
from tests.data.written.importing import decoded, index_of, opened, rows_of
from tests.data.written.layouts import written
from tests.data.written.pictures import zip_of


def expected(name: str, split: str | None = None) -> dict[str, bytes]:
    """Images by the names of rows, in the order of keys; those of a drawn split."""
    found = sorted((key.decode(), image) for key, image in lsun.images(name).items())
    drawn = [(key, image) for key, image in found if split in (None, split_of(key, 0))]
    return {f"{name}/data.mdb#{key}": image for key, image in drawn}


def test_a_scene_category_has_the_published_splits(source_uri: str) -> None:
    lsun.write(open_folder(source_uri))
    source = opened("lsun", source_uri, "category=bedroom")
    assert {part.split for part in source.parts()} == {"train", "val"}
    for split, count in (("train", 30), ("val", 3)):
        rows = rows_of(source, split)
        assert {row.name: row.image for row in rows} == expected(f"bedroom_{split}_lmdb")
        assert [row.name for row in rows] == [*expected(f"bedroom_{split}_lmdb")]
        assert len(rows) == count
        assert all(check_image(row.image) is None for row in rows)
    assert source.contents.columns == () and source.contents.labels == {}
    assert not source.contents.shuffled, "keys are hashes: their order is random already"


def test_an_object_category_is_drawn(tmp_path: Path) -> None:
    lsun.write(open_folder(str(tmp_path)))
    source = opened("lsun", str(tmp_path), "category=cat")
    counts = {}
    for split in ("train", "val", "test"):
        rows = rows_of(source, split)
        assert [(row.name, row.image) for row in rows] == [*expected("cat", split).items()]
        counts[split] = len(rows)
    assert sum(counts.values()) == 60
    assert counts == {"train": 52, "val": 5, "test": 3}
    other = index_of(opened("lsun", str(tmp_path), "category=cat", "seed=1"), "test")["name"].to_pylist()
    assert set(other) != set(expected("cat", "test"))


def test_several_categories_have_a_label(tmp_path: Path) -> None:
    lsun.write(open_folder(str(tmp_path)))
    source = opened("lsun", str(tmp_path))
    assert source.contents.labels["label"].names == ("bedroom", "cat")
    assert source.contents.shuffled
    rows = rows_of(source, "train")
    assert [row.columns["label"] for row in rows] == [0] * 30 + [1] * 52
    assert len(rows_of(source, "val")) == 3 + 5


@pytest.mark.parametrize("file", ["", "/data.mdb"])
def test_a_databases_own_folder(file: str, tmp_path: Path) -> None:
    lsun.write(open_folder(str(tmp_path)))
    source = opened("lsun", f"{tmp_path}/bedroom_val_lmdb{file}")
    assert {part.split for part in source.parts()} == {"val"}
    assert [row.image for row in rows_of(source, "val")] == [*expected("bedroom_val_lmdb").values()]
    source = opened("lsun", f"{tmp_path}/cat{file}")
    assert {part.split for part in source.parts()} == {"train", "val", "test"}
    with pytest.raises(UserError, match="category: got dog; allowed: cat"):
        opened("lsun", f"{tmp_path}/cat{file}", "category=dog")


def test_rows_come_in_the_order_of_any_index(source_uri: str) -> None:
    lsun.write(open_folder(source_uri))
    order = [29, 0, 7, 7, 3]
    images = [*expected("bedroom_train_lmdb").values()]
    rows = rows_of(opened("lsun", f"{source_uri}/bedroom_train_lmdb"), "train", order)
    assert [row.image for row in rows] == [images[at] for at in order]
    assert decoded(rows[0].image).shape[2] == 3


def test_records_beyond_the_end_are_rows_with_a_problem(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    records = {f"{number:04d}".encode(): bytes(9000) for number in range(20)}
    data = lsun.database(records)
    folder.write("dog/data.mdb", data)
    source = opened("lsun", str(tmp_path))
    index = index_of(source, "train")
    last = max(index["offset"].to_pylist())
    folder.write("dog/data.mdb", data[: last + 8999])
    problems = {row.name: row.problem for row in source.rows(index) if row.problem}
    assert list(problems.values()) == [f"a record that ends at byte {last + 9000:,} of {last + 8999:,}"]


METHODS = {"stored": zipfile.ZIP_STORED, "deflated": zipfile.ZIP_DEFLATED}
UNPACKED = written(lsun.write)


def write_zips(uri: str, method: str, *names: str) -> None:
    """The published .zip files of these databases; all of them if none is named."""
    for name, data in lsun.in_zips(UNPACKED(), METHODS[method]).items():
        if not names or name.removesuffix(".zip") in names:
            open_folder(uri).write(name, data)


def images_by_key(rows: list[Row]) -> dict[str, bytes]:
    assert all(row.problem is None for row in rows)
    return {row.name.rpartition("#")[2]: row.image for row in rows}


def keyed(name: str, split: str | None = None) -> dict[str, bytes]:
    return {row.rpartition("#")[2]: image for row, image in expected(name, split).items()}


@pytest.fixture
def many_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """Points as near as they can be, and blocks of a few pages."""
    monkeypatch.setattr(deflate_seek, "MIN_SPACING", 2**16)
    monkeypatch.setattr(seekable_file, "BLOCK", 10_000)


@pytest.mark.usefixtures("many_points")
@pytest.mark.parametrize("method", METHODS)
def test_the_published_zips_hold_what_they_held_unpacked(method: str, source_uri: str) -> None:
    write_zips(source_uri, method)
    for category, splits in {"bedroom": ("train", "val"), "cat": ("train", "val", "test")}.items():
        source = opened("lsun", source_uri, f"category={category}")
        assert {part.split for part in source.parts()} == {*splits}
        for split in splits:
            wanted = keyed("cat", split) if category == "cat" else keyed(f"bedroom_{split}_lmdb")
            index = index_of(source, split)
            rows = rows_of(source, split)
            assert images_by_key(rows) == wanted
            zipped = "cat.zip" if category == "cat" else f"bedroom_{split}_lmdb.zip"
            assert {row.name.partition("#")[0] for row in rows} == {zipped}
            assert source.contents.labels == {} and not source.contents.shuffled
            if method == "deflated":
                offsets = index["offset"].to_pylist()
                assert offsets == sorted(offsets), "shards that follow one another read it once"
            else:
                assert [row.name.rpartition("#")[2] for row in rows] == [*wanted]


@pytest.mark.usefixtures("many_points")
def test_any_rows_of_a_deflated_database_in_any_order(tmp_path: Path) -> None:
    write_zips(str(tmp_path), "deflated", "cat")
    source = opened("lsun", f"{tmp_path}/cat.zip")
    images, index = keyed("cat", "train"), index_of(source, "train")
    order = [51, 0, 7, 7, 30, 3]
    part = index.slice(20, 10).combine_chunks()
    assert [row.image for row in source.rows(part)] == [images[n.rpartition("#")[2]] for n in part["name"].to_pylist()]
    rows = rows_of(source, "train", order)
    assert [row.image for row in rows] == [images[row.name.rpartition("#")[2]] for row in rows]
    assert [row.name for row in rows] == [index["name"][at].as_py() for at in order]


def test_a_zip_is_named_by_itself_and_an_unpacked_folder_is_preferred(tmp_path: Path) -> None:
    write_zips(str(tmp_path), "stored")
    source = opened("lsun", f"{tmp_path}/bedroom_val_lmdb.zip")
    assert {part.split for part in source.parts()} == {"val"}
    with pytest.raises(UserError, match=r"category: got dog; allowed: bedroom, which .*bedroom_val_lmdb\.zip is"):
        opened("lsun", f"{tmp_path}/bedroom_val_lmdb.zip", "category=dog")
    with pytest.raises(UserError, match=r"dog\.zip: got a missing file"):
        opened("lsun", f"{tmp_path}/dog.zip")
    lsun.write(open_folder(str(tmp_path)))
    assert {found.name for found in opened("lsun", str(tmp_path)).databases} == set(UNPACKED()) - {
        f"{name}/lock.mdb" for name in lsun.COUNTS
    }


def test_several_categories_in_stored_zips_are_shuffled_and_deflated_ones_refused(tmp_path: Path) -> None:
    write_zips(str(tmp_path), "stored", "cat")
    write_zips(str(tmp_path), "deflated", "bedroom_train_lmdb")
    got = r"several categories, of which bedroom_train_lmdb\.zip is deflated; .*set category=NAME"
    with pytest.raises(UserError, match=got):
        opened("lsun", str(tmp_path))
    write_zips(str(tmp_path), "stored", "bedroom_train_lmdb")
    source = opened("lsun", str(tmp_path))
    assert source.contents.shuffled
    assert [row.columns["label"] for row in rows_of(source, "train")] == [0] * 30 + [1] * 52


def test_splits_of_a_deflated_database_are_drawn_from_one_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_zips(str(tmp_path), "deflated", "cat")
    passes, points = [], DeflatedMember.points
    monkeypatch.setattr(DeflatedMember, "points", lambda self: passes.append(self.name) or points(self))
    source = opened("lsun", str(tmp_path))
    assert [len(index_of(source, split)) for split in ("train", "val", "test")] == [52, 5, 3]
    assert passes == ["cat.zip"]


@pytest.mark.parametrize("failing", [OSError(errno.EIO, "Input/output error"), UserError("a", "b", "c", "d"), None])
def test_what_goes_wrong_in_a_deflated_database_is_said(
    failing: Exception | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_zips(str(tmp_path), "deflated", "cat")
    source = opened("lsun", str(tmp_path))
    index = index_of(source, "train")

    def read(file: SeekableFile, number: int) -> bytes:
        if failing:
            raise failing
        return b"\xff" * seekable_file.BLOCK

    monkeypatch.setattr(SeekableFile, "_read", read)
    with pytest.raises((OSError, UserError)) as raised:
        [*source.rows(index)]
    if failing:
        assert raised.value is failing
    else:
        assert str(raised.value).startswith(f"{tmp_path}/cat.zip: cat/data.mdb: got bytes that cannot be inflated;")


def test_a_list_of_a_zip_that_was_unpacked_meanwhile(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    write_zips(str(tmp_path), "stored", "cat")
    index = index_of(opened("lsun", str(tmp_path)), "train")
    folder.write("cat/data.mdb", UNPACKED()["cat/data.mdb"])
    with pytest.raises(UserError, match=r"got cat/data\.mdb instead of cat\.zip, .*; allowed: cat\.zip alone; move it"):
        [*opened("lsun", str(tmp_path)).rows(index)]


def test_zips_that_hold_something_else(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    for files, got in (
        ({"cat/a.jpg": b"a"}, r"a zip of cat/a\.jpg; allowed: exactly one data\.mdb"),
        ({}, "a zip of nothing"),
        ({"a/data.mdb": b"a", "b/data.mdb": b"b"}, r"a zip of a/data\.mdb, b/data\.mdb"),
    ):
        folder.write("cat.zip", zip_of(files))
        with pytest.raises(UserError, match=rf"cat\.zip: got {got}"):
            opened("lsun", str(tmp_path))
    for method in METHODS.values():
        for data, got in ((b"\0" * 300_000, "no LMDB database"), (lsun.database({}), "an empty database")):
            folder.write("cat.zip", zip_of({"cat/data.mdb": data}, method))
            with pytest.raises(UserError, match=rf"cat\.zip.*: got {got}"):
                index_of(opened("lsun", str(tmp_path)), "train")
    folder.write("cat.zip", b"no zip")
    with pytest.raises(UserError, match=r"cat\.zip: got not a valid zip"):
        opened("lsun", str(tmp_path))


def test_what_is_not_lsun(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    with pytest.raises(UserError, match=r"got no database of a category; .*add it"):
        opened("lsun", str(tmp_path))
    lsun.write(folder)
    with pytest.raises(UserError, match="got no database of horse"):
        opened("lsun", str(tmp_path), "category=horse")
    with pytest.raises(UserError, match="category: got 'tower'"):
        opened("lsun", str(tmp_path), "category=tower")
    folder.write("bird/data.mdb", lsun.database({}))
    with pytest.raises(UserError, match=r"bird/data\.mdb: got an empty database"):
        opened("lsun", str(tmp_path)).parts()
    folder.write("bird/data.mdb", b"\0" * 10000)
    with pytest.raises(UserError, match=r"bird/data\.mdb: got no LMDB database"):
        opened("lsun", str(tmp_path)).parts()
