"""LSUN's databases: published and drawn splits, several categories, records that are cut."""

from pathlib import Path

import pytest

from soda_dist.data.sources.contract import check_image
from soda_dist.data.sources.splits import split_of
from soda_dist.data.storage import open_folder
from soda_dist.errors import UserError
from tests.data.written import lsun
from tests.data.written.importing import decoded, index_of, opened, rows_of


def expected(name: str, split: str | None = None) -> dict[str, bytes]:
    """Images by the names of rows, in the order of keys; those of a drawn split."""
    found = sorted((key.decode(), image) for key, image in lsun.images(name).items())
    drawn = [(key, image) for key, image in found if split in (None, split_of(key, 0))]
    return {f"{name}/data.mdb#{key}": image for key, image in drawn}


def test_a_scene_category_has_the_published_splits(any_uri: str) -> None:
    lsun.write(open_folder(any_uri))
    source = opened("lsun", any_uri, "category=bedroom")
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


def test_rows_come_in_the_order_of_any_index(any_uri: str) -> None:
    lsun.write(open_folder(any_uri))
    order = [29, 0, 7, 7, 3]
    images = [*expected("bedroom_train_lmdb").values()]
    rows = rows_of(opened("lsun", f"{any_uri}/bedroom_train_lmdb"), "train", order)
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


def test_what_is_not_lsun(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    with pytest.raises(UserError, match=r"got no database of a category; .*unpack it there"):
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
