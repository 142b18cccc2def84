"""CIFAR-10's layouts, made small: binary batches, the tar.gz of them, Parquet with both forms of an image column."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from soda_dist.data.source import Row, Source
from soda_dist.data.sources import SOURCES, parse_options
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.errors import UserError
from tests.data.written.cifar10 import BATCHES, archive_of, batch_bytes, jpeg, label, pixels, table


def opened(uri: str) -> Source:
    return SOURCES["cifar10"].open_source(uri, parse_options("cifar10", []))


def rows_of(source: Source, split: str) -> list[Row]:
    tables = [source.index(part) for part in source.parts() if part.split == split]
    return list(source.rows(pa.concat_tables(tables)))


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def write_batches(folder: Folder) -> None:
    for i, name in enumerate(BATCHES):
        folder.write(name, batch_bytes(i))
    folder.write("batches.meta.txt", b"airplane\n")


def check_batches(source: Source) -> None:
    assert source.contents.labels["label"].names[:2] == ("airplane", "automobile")
    assert not source.contents.shuffled
    for split, batches in (("train", range(5)), ("test", [5])):
        rows = rows_of(source, split)
        places = [(batch, row) for batch in batches for row in range(4)]
        assert [row.columns["label"] for row in rows] == [label(*place) for place in places]
        assert [row.name for row in rows] == [f"{BATCHES[batch]}#{row}" for batch, row in places]
        for row, place in zip(rows, places, strict=True):
            assert row.image.startswith(b"\x89PNG")
            assert np.array_equal(decoded(row.image), pixels(*place))


def test_binary_batches_become_png_without_loss(source_uri: str) -> None:
    folder = open_folder(source_uri).child("cifar-10-batches-bin")
    write_batches(folder)
    check_batches(opened(folder.uri))
    check_batches(opened(source_uri))


def test_the_published_archive(source_uri: str) -> None:
    open_folder(source_uri).write("cifar-10-binary.tar.gz", archive_of(list(reversed(BATCHES))))
    check_batches(opened(f"{source_uri}/cifar-10-binary.tar.gz"))
    check_batches(opened(source_uri))


def test_a_record_cut_short_and_a_label_out_of_range_are_rows_with_a_problem(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    write_batches(folder)
    folder.write(BATCHES[5], b"\x0b" + batch_bytes(5)[1:-100])
    rows = rows_of(opened(str(tmp_path)), "test")
    assert [row.problem for row in rows] == ["label 11, not 0..9", None, None, "a truncated record"]


def test_an_empty_batch_leaves_the_others(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    write_batches(folder)
    folder.write(BATCHES[2], b"")
    rows = rows_of(opened(str(tmp_path)), "train")
    assert [row.name for row in rows] == [f"{BATCHES[batch]}#{row}" for batch in (0, 1, 3, 4) for row in range(4)]
    assert not any(row.problem for row in rows)


def write_parquet(folder: Folder, name: str, rows: range, image: str = "image", struct: bool = False) -> None:
    folder.write(name, table(rows, image, struct))


@pytest.mark.parametrize(("column", "struct"), [("image", False), ("img", True)])
def test_parquet_images_keep_their_bytes(column: str, struct: bool, source_uri: str) -> None:
    folder = open_folder(source_uri)
    write_parquet(folder, "train/b.parquet", range(7, 10), column, struct)
    write_parquet(folder, "train/a.parquet", range(7), column, struct)
    write_parquet(folder, "test/a.parquet", range(20, 24), column, struct)
    source = opened(source_uri)
    for split, count in (("train", range(10)), ("test", range(20, 24))):
        rows = rows_of(source, split)
        assert [row.image for row in rows] == [jpeg(row) for row in count]
        assert [row.columns["label"] for row in rows] == [row % 10 for row in count]
    names = [row.name for row in rows_of(source, "test")]
    assert names == [f"{row}.jpg" if struct else f"test/a.parquet#{row - 20}" for row in range(20, 24)]


def test_parquet_rows_come_in_the_order_of_any_index(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    write_parquet(folder, "train/a.parquet", range(10))
    source = opened(str(tmp_path))
    index = source.index(source.parts()[0])
    order = [9, 0, 5, 4, 3, 3]
    assert [row.image for row in source.rows(index.take(order))] == [jpeg(row) for row in order]


def test_bad_cells_are_rows_with_a_problem(tmp_path: Path) -> None:
    bad = pa.table({"image": [b"1", None, b"", b"4"], "label": [0, 1, 2, 10]})
    (tmp_path / "train").mkdir()
    pq.write_table(bad, tmp_path / "train/a.parquet")
    problems = [row.problem for row in rows_of(opened(str(tmp_path)), "train")]
    assert problems == [None, "no image bytes", "no image bytes", "label 10, not 0..9"]


def test_wrong_parquet(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    folder.write("train/a.parquet", b"PAR1 but not really")
    source = opened(str(tmp_path))
    with pytest.raises(UserError, match=r"train/a\.parquet: got not valid Parquet"):
        source.index(source.parts()[0])
    pq.write_table(pa.table({"picture": [b"1"], "label": [1]}), tmp_path / "train/a.parquet")
    with pytest.raises(UserError, match="got columns picture, label; allowed: one of image/img"):
        source.index(source.parts()[0])


def test_what_is_not_cifar10(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    with pytest.raises(UserError, match="none of CIFAR-10's layouts"):
        opened(str(tmp_path))
    with pytest.raises(UserError, match="got a missing file"):
        opened(f"{tmp_path}/cifar-10-binary.tar.gz")
    folder.write("cut.tar.gz", archive_of(BATCHES)[:-2000])
    with pytest.raises(UserError, match=r"cut\.tar\.gz: got not a valid tar\.gz"):
        opened(f"{tmp_path}/cut.tar.gz")
    folder.write("few.tar.gz", archive_of(BATCHES[:3]))
    with pytest.raises(UserError, match=r"few\.tar\.gz: got no data_batch_4\.bin"):
        opened(f"{tmp_path}/few.tar.gz")
    folder.write("data_batch_1.bin", batch_bytes(0))
    with pytest.raises(UserError, match=r"got no data_batch_2\.bin"):
        opened(str(tmp_path))


def test_options() -> None:
    assert parse_options("cifar10", ["seed=3", "rows_per_group=64"]).rows_per_group == 64
    for options, says in (
        (
            ["sede=3"],
            "sede: got an unknown key; allowed: rows_per_group, groups_per_shard, seed, .*; did you mean seed",
        ),
        (["seed"], "option: got seed; allowed: option=value"),
        (["max_side=many"], "max_side: got 'many'; allowed: integer; correct it"),
        (["seed=x"], "seed: got 'x'"),
        (["rows_per_group=0"], "rows_per_group: got 0"),
    ):
        with pytest.raises(UserError, match=says):
            parse_options("cifar10", options)
    with pytest.raises(UserError, match=r"kind: got cifar; allowed: .*cifar10, .*imagenet"):
        parse_options("cifar", [])
