"""ImageNet's layouts, made small: folders, the tar of tars, the flat tar with its devkit; from the disk and from S3."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from soda_dist.data.formats import archive
from soda_dist.data.source import Row, Source, check_image
from soda_dist.data.sources import SOURCES, parse_options
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.errors import UserError
from tests.data.written import imagenet
from tests.data.written.imagenet import DEVKIT, WNIDS, devkit, images, train_tar, val_images
from tests.data.written.pictures import tar_of

META = f"{DEVKIT}/data/meta.mat"


def opened(uri: str) -> Source:
    return SOURCES["imagenet"].open_source(uri, parse_options("imagenet", []))


def rows_of(source: Source, split: str) -> list[Row]:
    tables = [source.index(part) for part in source.parts() if part.split == split]
    return list(source.rows(pa.concat_tables(tables)))


def write_all(folder: Folder, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        folder.write(name, data)


def test_folders_of_classes_alone_are_a_training_split(source_uri: str) -> None:
    folder = open_folder(source_uri).child("data")
    for wnid in reversed(WNIDS):
        write_all(folder, {f"{wnid}/{name}": data for name, data in images(wnid, 3).items()})
    folder.write("README.md", b"not a row")
    source = opened(folder.uri)
    rows = rows_of(source, "train")
    assert {part.split for part in source.parts()} == {"train"}
    assert source.contents.labels["label"].names == WNIDS
    assert source.contents.shuffled
    assert [row.name for row in rows] == [f"{wnid}/{wnid}_{i}.JPEG" for wnid in WNIDS for i in range(3)]
    assert all(row.image == folder.read(row.name) for row in rows)
    assert [row.columns["label"] for row in rows] == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_folders_of_splits(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    write_all(folder, {f"train/{wnid}/{name}": data for wnid in WNIDS for name, data in images(wnid, 2).items()})
    write_all(folder, {f"val/{WNIDS[2]}/{name}": data for name, data in images(WNIDS[2], 1).items()})
    folder.write(f"train/{WNIDS[0]}/notes.txt", b"a row that is no image")
    source = opened(str(tmp_path))
    assert [(row.name, row.columns["label"]) for row in rows_of(source, "val")] == [
        (f"val/{WNIDS[2]}/{WNIDS[2]}_0.JPEG", 2)
    ]
    train = rows_of(source, "train")
    assert len(train) == 7
    assert [row.name for row in train if check_image(row.image)] == [f"train/{WNIDS[0]}/notes.txt"]


def test_the_published_tars(any_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "STREAM_BYTES", 4096)
    folder = open_folder(any_uri)
    val = val_images()
    files = {"ILSVRC2012_img_train.tar": train_tar(), "ILSVRC2012_img_val.tar": tar_of(val)}
    write_all(folder, {**files, f"{DEVKIT}.tar.gz": tar_of(devkit(), "w:gz")})
    source = opened(any_uri)
    assert source.contents.labels["label"].names == WNIDS
    train = rows_of(source, "train")
    assert [(row.name, row.columns["label"]) for row in train] == [
        (f"{wnid}/{wnid}_{i}.JPEG", label) for label, wnid in enumerate(WNIDS) for i in range(2 + label)
    ]
    assert all(row.image == images(row.name.split("/")[0], 4)[row.name.split("/")[1]] for row in train)
    # The truth goes by sorted file name, 3 1 2 1 as ids: n01443537 n02105855 n01440764 n02105855.
    rows = rows_of(source, "val")
    assert [row.name for row in rows] == sorted(val)
    assert [row.columns["label"] for row in rows] == [1, 2, 0, 2]
    assert all(row.image == val[row.name] for row in rows)


def test_rows_come_in_the_order_of_any_index(source_uri: str) -> None:
    open_folder(source_uri).write("ILSVRC2012_img_train.tar", train_tar())
    source = opened(source_uri)
    index = pa.concat_tables([source.index(part) for part in source.parts()])
    order = np.random.default_rng(0).permutation(len(index))
    expected = [row.name for row in rows_of(source, "train")]
    rows = list(source.rows(index.take(order)))
    assert [row.name for row in rows] == [expected[i] for i in order]
    assert all(row.image == images(row.name.split("/")[0], 4)[row.name.split("/")[1]] for row in rows)


def test_the_training_tar_alone_and_an_unpacked_devkit(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    folder.write("ILSVRC2012_img_train.tar", train_tar())
    source = opened(f"{tmp_path}/ILSVRC2012_img_train.tar")
    assert {part.split for part in source.parts()} == {"train"}
    assert len(rows_of(source, "train")) == 9
    write_all(folder, {"ILSVRC2012_img_val.tar": tar_of(val_images()), **devkit()})
    assert [row.columns["label"] for row in rows_of(opened(str(tmp_path)), "val")] == [1, 2, 0, 2]


def test_a_file_that_has_gone_is_a_row_with_a_problem(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    write_all(folder, {f"{WNIDS[0]}/{name}": data for name, data in images(WNIDS[0], 3).items()})
    source = opened(str(tmp_path))
    index = source.index(source.parts()[0])
    folder.remove(f"{WNIDS[0]}/{WNIDS[0]}_1.JPEG")
    assert [row.problem for row in source.rows(index)] == [None, "a missing file", None]


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "none of ImageNet's layouts"),
        ({"cats/1.JPEG": b""}, "none of ImageNet's layouts"),
        ({f"train/{WNIDS[0]}/1.JPEG": b"", "val/1.JPEG": b""}, r"val/: got no folder <wnid>/"),
        ({f"train/{WNIDS[0]}/1.JPEG": b"", f"val/{WNIDS[1]}/1.JPEG": b""}, f"got class {WNIDS[1]} in val"),
        ({"ILSVRC2012_img_train.tar": b"x" * 2000}, "not a valid tar"),
        ({"ILSVRC2012_img_train.tar": tar_of({"a.txt": b"1"})}, "got a tar without <wnid>.tar"),
        ({"ILSVRC2012_img_val.tar": tar_of(val_images())}, "allowed: ILSVRC2012_devkit_t12.tar.gz next to it"),
        (
            {"ILSVRC2012_img_val.tar": tar_of(val_images()), f"{DEVKIT}.tar.gz": b"\x1f\x8bno"},
            "no ILSVRC2012_devkit_t12/data/meta.mat",
        ),
    ],
)
def test_what_is_not_imagenet(files: dict[str, bytes], says: str, tmp_path: Path) -> None:
    write_all(open_folder(str(tmp_path)), files)
    with pytest.raises(UserError, match=says):
        opened(str(tmp_path))


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    for name in ("nothing", "nothing.tar"):
        with pytest.raises(UserError, match="none of ImageNet's layouts"):
            opened(f"{tmp_path}/{name}")
    (tmp_path / "file").write_bytes(b"1")
    with pytest.raises(UserError, match="got a path through a file"):
        opened(f"{tmp_path}/file")


def test_labels_without_images(tmp_path: Path) -> None:
    few = dict(list(val_images().items())[:3])
    write_all(open_folder(str(tmp_path)), {"ILSVRC2012_img_val.tar": tar_of(few), **devkit()})
    source = opened(str(tmp_path))
    with pytest.raises(UserError, match="3 images for 4 labels"):
        source.index(source.parts()[0])


TRUTH = f"{DEVKIT}/data/ILSVRC2012_validation_ground_truth.txt"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({META: imagenet.meta()[:-100]}, r"no synsets in meta\.mat \(a truncated element\)"),
        ({META: imagenet.meta(True)[:-9]}, r"no synsets in meta\.mat \(a truncated element\)"),
        ({META: b"<html>" * 100}, r"no synsets in meta\.mat \(not a MATLAB file"),
        ({META: imagenet.meta().replace(b"WNID", b"WMID")}, r"no synsets in meta\.mat \(no field WNID\)"),
        ({META: imagenet.meta().replace(b"n02105855", b"x02105855")}, "the wnid 'x02105855'"),
        ({TRUTH: b"3\n1\n2\n4\n"}, "an id in ILSVRC2012_validation_ground_truth.txt that meta.mat lacks"),
        ({TRUTH: b"3\n1\n2\n1.5\n"}, "an id in ILSVRC2012_validation"),
        ({TRUTH: b"\xff\xfe3\n"}, "an id in ILSVRC2012_validation"),
    ],
    ids=range(8),
)
def test_a_devkit_that_is_not_as_published(changes: dict[str, bytes], says: str, tmp_path: Path) -> None:
    files = {"ILSVRC2012_img_val.tar": tar_of(val_images()), **devkit(), **changes}
    write_all(open_folder(str(tmp_path)), files)
    with pytest.raises(UserError, match=rf"{DEVKIT}: got {says}"):
        opened(str(tmp_path))


def test_a_compressed_devkit_that_is_damaged(tmp_path: Path) -> None:
    data = bytearray(tar_of(devkit(), "w:gz"))
    data[40:60] = b"\xff" * 20
    files = {"ILSVRC2012_img_val.tar": tar_of(val_images()), f"{DEVKIT}.tar.gz": bytes(data)}
    write_all(open_folder(str(tmp_path)), files)
    with pytest.raises(UserError, match=rf"{DEVKIT}\.tar\.gz: got no {DEVKIT}/data/meta\.mat"):
        opened(str(tmp_path))


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_tar_that_ends_too_early(share: float, tmp_path: Path) -> None:
    data = train_tar()
    data = data[: len(data.rstrip(b"\0"))]
    open_folder(str(tmp_path)).write("ILSVRC2012_img_train.tar", data[: int(share * len(data))])
    with pytest.raises(UserError, match=r"ILSVRC2012_img_train\.tar: got not a valid tar"):
        opened(str(tmp_path))


def test_a_damaged_header_does_not_pass_for_the_end(tmp_path: Path) -> None:
    inner = tar_of(images(WNIDS[0], 3))
    second = inner.index(f"{WNIDS[0]}_1.JPEG".encode())
    damaged = inner[:second] + b"\xff" * 200 + inner[second + 200 :]
    open_folder(str(tmp_path)).write("ILSVRC2012_img_train.tar", tar_of({f"{WNIDS[0]}.tar": damaged}))
    source = opened(str(tmp_path))
    with pytest.raises(UserError, match="a damaged header at byte"):
        source.index(source.parts()[0])


@pytest.mark.parametrize("where", ["train", "class", "val"])
@pytest.mark.parametrize(
    ("name", "link", "says"),
    [
        ("../1.JPEG", "", r"got the member \.\./1\.JPEG"),
        ("/etc/1.JPEG", "", r"got the member /etc/1\.JPEG"),
        ("a/../../1.JPEG", "", r"got the member a/\.\./\.\./1\.JPEG"),
        ("1.JPEG", "/etc/passwd", r"got a link, 1\.JPEG"),
    ],
)
def test_hostile_members_are_refused(where: str, name: str, link: str, says: str, tmp_path: Path) -> None:
    def hostile(files: dict[str, bytes]) -> bytes:
        return tar_of(files if link else {**files, name: b"1"}, links={name: link} if link else None)

    train = {f"{WNIDS[0]}.tar": (hostile if where == "class" else tar_of)(images(WNIDS[0], 2))}
    folder = open_folder(str(tmp_path))
    folder.write("ILSVRC2012_img_train.tar", (hostile if where == "train" else tar_of)(train))
    folder.write("ILSVRC2012_img_val.tar", (hostile if where == "val" else tar_of)(val_images()))
    write_all(folder, devkit())
    tar = "ILSVRC2012_img_val" if where == "val" else "ILSVRC2012_img_train"
    with pytest.raises(UserError, match=rf"{tar}\.tar: {says}"):
        rows_of(opened(str(tmp_path)), "val" if where == "val" else "train")
