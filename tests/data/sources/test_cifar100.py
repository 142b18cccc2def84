"""CIFAR-100 as the published archive and as the folder in it: two labels, in the order of the published bytes."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from soda_dist.data.source import Source
from soda_dist.data.storage.folder import open_folder
from soda_dist.errors import UserError
from tests.data.written import cifar100
from tests.data.written.importing import decoded, opened, rows_of


def check(source: Source) -> None:
    for split, count in cifar100.ROWS.items():
        rows = rows_of(source, split)
        assert [row.name for row in rows] == [f"{split}.bin#{row}" for row in range(count)]
        for number, row in enumerate(rows):
            assert (row.columns["coarse_label"], row.columns["label"]) == cifar100.labels(split, number)
            assert np.array_equal(decoded(row.image), cifar100.pixels(split, number))


def test_the_published_archive(source_uri: str) -> None:
    cifar100.write(open_folder(source_uri))
    check(opened("cifar100", source_uri))
    check(opened("cifar100", f"{source_uri}/cifar-100-binary.tar.gz"))


def test_the_folder_in_it(source_uri: str) -> None:
    folder = open_folder(source_uri).child("cifar-100-binary")
    for name, data in cifar100.files().items():
        folder.write(name, data)
    check(opened("cifar100", source_uri))
    check(opened("cifar100", folder.uri))


def test_classes_are_in_the_published_order(tmp_path: Path) -> None:
    cifar100.write(open_folder(str(tmp_path)))
    contents = opened("cifar100", str(tmp_path)).contents
    fine, coarse = contents.labels["label"].names, contents.labels["coarse_label"].names
    assert contents.main_label == "label"
    assert len(set(fine)) == 100
    assert len(set(coarse)) == 20
    assert [fine[i] for i in (0, 1, 26, 50, 99)] == ["apple", "aquarium_fish", "crab", "mouse", "worm"]
    assert [coarse[i] for i in (0, 9, 17, 19)] == [
        "aquatic_mammals",
        "large_man-made_outdoor_things",
        "trees",
        "vehicles_2",
    ]


@pytest.mark.parametrize("packed", [True, False])
def test_rows_come_in_the_order_of_any_index(packed: bool, tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    if packed:
        cifar100.write(folder)
    else:
        for name, data in cifar100.files().items():
            folder.write(name, data)
    order = [4, 0, 3, 3, 1]
    rows = rows_of(opened("cifar100", str(tmp_path)), "train", order)
    assert [row.name for row in rows] == [f"train.bin#{row}" for row in order]
    for number, row in zip(order, rows, strict=True):
        assert np.array_equal(decoded(row.image), cifar100.pixels("train", number))


@pytest.mark.parametrize("packed", [True, False])
def test_bad_records_are_rows_with_a_problem(packed: bool, tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    good = cifar100.batch("train")
    files = {"train.bin": good[:3074] + b"\x14" + good[3075:6149] + b"\x64" + good[6150:-1], "test.bin": good[:3074]}
    for name, data in files.items() if not packed else [("cifar-100-binary.tar.gz", cifar100.archive(files))]:
        folder.write(name, data)
    problems = [row.problem for row in rows_of(opened("cifar100", str(tmp_path)), "train")]
    assert problems == [None, "coarse_label 20, not 0..19", "label 100, not 0..99", None, "a truncated record"]


def test_what_is_not_cifar100(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    with pytest.raises(UserError, match="none of CIFAR-100's layouts"):
        opened("cifar100", str(tmp_path))
    with pytest.raises(UserError, match="got a missing file"):
        opened("cifar100", f"{tmp_path}/none.tar.gz")
    folder.write("cut.tar.gz", cifar100.archive(cifar100.files())[:-3000])
    with pytest.raises(UserError, match=r"cut\.tar\.gz: got not a valid tar\.gz"):
        opened("cifar100", f"{tmp_path}/cut.tar.gz")
    folder.write("train.bin", cifar100.batch("train"))
    with pytest.raises(UserError, match=r"got no test\.bin"):
        opened("cifar100", str(tmp_path))


def test_a_link_in_the_archive_is_no_batch(tmp_path: Path) -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w:gz") as tar:
        for name in ("train.bin", "test.bin"):
            info = tarfile.TarInfo(f"cifar-100-binary/{name}")
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(info)
    open_folder(str(tmp_path)).write("cifar-100-binary.tar.gz", sink.getvalue())
    with pytest.raises(UserError, match=r"got no train\.bin"):
        opened("cifar100", str(tmp_path))
