"""AFHQ: both versions, as folders and as the published zips."""

from pathlib import Path

import pytest

from soda_dist.data.storage.folder import open_folder
from soda_dist.errors import UserError
from tests.data.written import afhq
from tests.data.written.importing import opened, rows_of
from tests.data.written.pictures import picture, zip_of


def check(uri: str, version: int) -> None:
    source = opened("afhq", uri)
    assert source.contents.labels["label"].names == ("cat", "dog", "wild")
    assert source.contents.main_label == "label" and source.contents.shuffled
    held_out = {1: "val", 2: "test"}[version]
    assert {part.split for part in source.parts()} == {"train", held_out}
    train, others = rows_of(source, "train"), rows_of(source, held_out)
    assert [row.columns["label"] for row in train] == [0, 0, 0, 1, 1, 2]
    assert [row.columns["label"] for row in others] == [0, 1, 2, 2]
    files = {name.partition("/")[2]: data for name, data in afhq.files(version).items()}
    found = {row.name.removeprefix("afhq/").removeprefix("afhq_v2/"): row.image for row in train + others}
    assert found == files


@pytest.mark.parametrize("version", [1, 2])
def test_the_versions_as_folders(version: int, source_uri: str) -> None:
    for name, data in afhq.files(version).items():
        open_folder(source_uri).write(name, data)
    check(source_uri, version)
    check(f"{source_uri}/{'afhq' if version == 1 else 'afhq_v2'}", version)


@pytest.mark.parametrize("version", [1, 2])
def test_the_published_archives(version: int, source_uri: str) -> None:
    name = {1: "afhq.zip", 2: "afhq_v2.zip"}[version]
    files = afhq.files(version)
    # Version 2's archive has no folder around its splits.
    packed = files if version == 1 else {file.partition("/")[2]: data for file, data in files.items()}
    open_folder(source_uri).write(name, zip_of({**packed, "__MACOSX/train/cat/._a.jpg": b"1"}))
    check(f"{source_uri}/{name}", version)
    check(source_uri, version)


def test_files_that_are_no_animals(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    afhq.write(folder)
    folder.write("afhq/train/list.txt", b"1")
    rejected = [row for row in rows_of(opened("afhq", str(tmp_path)), "train") if row.problem]
    assert [(row.name, row.problem) for row in rejected] == [("afhq/train/list.txt", "not in a class folder")]


def test_what_is_not_afhq(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    with pytest.raises(UserError, match="none of AFHQ's layouts"):
        opened("afhq", str(tmp_path))
    folder.write("train/cat/1.jpg", picture(1))
    with pytest.raises(UserError, match="got train without val or test"):
        opened("afhq", str(tmp_path))
    folder.write("val/bird/1.jpg", picture(1))
    with pytest.raises(UserError, match="got the folder bird in val; allowed: cat, dog, wild"):
        opened("afhq", str(tmp_path))
    afhq.write(folder)
    with pytest.raises(UserError, match=rf"AFHQ more than once: {tmp_path} and {tmp_path}/afhq; .*choose one"):
        opened("afhq", str(tmp_path))
