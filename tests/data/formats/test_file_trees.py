"""Folders and archives as one kind of tree: the same listing, the same bytes; archives that are damaged or hostile."""

import gzip
import io
import pickle
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from soda_dist.data.formats import file_trees
from soda_dist.data.formats.file_trees import Tree, file_index, open_tree
from soda_dist.data.source import Row
from soda_dist.data.storage.folder import open_folder
from soda_dist.errors import UserError
from tests.data.written.pictures import picture, tar_of, zip_of

FILES = {f"top/{folder}/{number}.jpg": picture(number) for folder in ("b", "a", "a b") for number in (2, 10, 1)}
FILES["top/notes.txt"] = b"text"
KINDS: dict[str, Callable[[dict[str, bytes]], bytes]] = {
    "x.zip": zip_of,
    "stored.zip": lambda files: zip_of(files, zipfile.ZIP_STORED),
    "x.tar": tar_of,
    "x.tar.gz": lambda files: tar_of(files, "w:gz"),
    "plain.tgz": tar_of,
}


def write(uri: str, name: str, files: dict[str, bytes] = FILES) -> Tree:
    """A tree of this kind, as a task gets it."""
    folder = open_folder(uri)
    if name == "folder":
        for file, data in files.items():
            folder.write(f"folder/{file}", data)
    else:
        folder.write(name, KINDS[name](files))
    return pickle.loads(pickle.dumps(open_tree(f"{uri}/{name}")))


def rows_of(tree: Tree, names: list[str]) -> list[Row]:
    return list(tree.rows(file_index(tree.find(names)), []))


@pytest.mark.parametrize("name", ["folder", *KINDS])
def test_every_kind_lists_and_reads_alike(name: str, any_uri: str) -> None:
    tree = write(any_uri, name)
    assert [member.name for member in tree.files()] == sorted(FILES)
    assert [member.name for member in tree.files("top/a/")] == ["top/a/1.jpg", "top/a/10.jpg", "top/a/2.jpg"]
    assert [member.name for member in tree.direct_files("top/")] == ["top/notes.txt"]
    assert list(tree.folders()) == ["top"]
    assert list(tree.folders("top/")) == ["a", "a b", "b"]
    assert list(tree.folders("top/a/")) == list(tree.folders("nothing/")) == list(tree.files("nothing/")) == []
    assert tree.read(["top/notes.txt", "top/nothing"]) == {"top/notes.txt": b"text"}
    rows = list(tree.rows(file_index(tree.files()).take([3, 0, 0, 8]), []))
    names = [sorted(FILES)[at] for at in (3, 0, 0, 8)]
    assert [(row.name, row.image) for row in rows] == [(name, FILES[name]) for name in names]
    rows = rows_of(tree, ["top/b/2.jpg", "top/b/3.jpg", "top/a/1.jpg"])
    assert [row.problem for row in rows] == [None, "a missing file", None]
    assert [row.image for row in rows] == [FILES["top/b/2.jpg"], b"", FILES["top/a/1.jpg"]]


def test_a_compressed_tar_is_passed_through_for_so_many_bytes_of_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = write(str(tmp_path), "x.tar.gz")
    passes, read = [], file_trees.read_gzip_members
    monkeypatch.setattr(file_trees, "HELD_BYTES", 4 * max(len(data) for data in FILES.values()))
    monkeypatch.setattr(file_trees, "read_gzip_members", lambda *given: passes.append(len(given[2])) or read(*given))
    index = file_index(tree.files()).take([8, 0, 3, 2, 1, 7, 9, 4, 6, 5])
    assert [row.image for row in tree.rows(index, [])] == [FILES[name] for name in index["name"].to_pylist()]
    assert sum(passes) == 10 and 2 <= len(passes) <= 3


def test_a_pass_through_a_compressed_tar_may_hold_exactly_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = write(str(tmp_path), "x.tar.gz", {f"{i}.jpg": bytes([i]) * 100 for i in range(6)})
    passes, read = [], file_trees.read_gzip_members
    monkeypatch.setattr(file_trees, "HELD_BYTES", 300)
    monkeypatch.setattr(file_trees, "read_gzip_members", lambda *given: passes.append(len(given[2])) or read(*given))
    assert len(list(tree.rows(file_index(tree.files()), []))) == 6 and passes == [3, 3]


def test_names_as_long_as_storage_allows(tmp_path: Path) -> None:
    tree = open_tree(str(tmp_path))
    part, whole = "ä" * 127 + "a", "/".join(["b" * 204] * 5)
    assert (len(part.encode()), len(whole)) == (255, 1024)
    assert [member.name for member in tree.find([part, whole])] == [part, whole]
    for name in (part + "a", whole + "b"):
        with pytest.raises(UserError, match=r"the name .*allowed: names of 1024 bytes, 255 between two /"):
            tree.find([name])


@pytest.mark.parametrize("name", ["folder", *KINDS])
def test_a_file_larger_than_any_image_is_not_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_trees, "MAX_BYTES", 2000)
    tree = write(str(tmp_path), name, {"small.jpg": b"1", "large.jpg": random.Random(1).randbytes(2500)})
    large, small = tree.rows(file_index(tree.files()), [])
    assert (large.image, small.image, small.problem) == (b"", b"1", None)
    assert large.problem is not None and large.problem.startswith("a file of ")


def test_a_zip_bomb_is_inflated_no_further_than_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_trees, "MAX_BYTES", 10_000)
    tree = write(str(tmp_path), "x.zip", {"bomb.jpg": bytes(10**6), "small.jpg": b"1"})
    assert [row.problem for row in tree.rows(file_index(tree.files()), [])] == [
        "a damaged member, or one larger than 10,000 bytes",
        None,
    ]


@pytest.mark.parametrize("name", [*KINDS])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_an_archive_that_ends_too_early(name: str, share: float, tmp_path: Path) -> None:
    data = KINDS[name](FILES)
    data = data[: len(data.rstrip(b"\0"))] if "gz" not in name or name == "plain.tgz" else data
    open_folder(str(tmp_path)).write(name, data[: int(share * len(data))])
    with pytest.raises(UserError, match=rf"{name}: got (not a valid (zip|tar|tar\.gz)|a damaged header)"):
        open_tree(f"{tmp_path}/{name}").files()


def test_damage_inside_a_compressed_tar(tmp_path: Path) -> None:
    plain = bytearray(tar_of(FILES))
    second = plain.index(b"top/b/10.jpg")
    plain[second : second + 200] = b"\xff" * 200
    folder = open_folder(str(tmp_path))
    folder.write("x.tgz", gzip.compress(bytes(plain)))
    with pytest.raises(UserError, match=r"x\.tgz: got a damaged header"):
        open_tree(f"{tmp_path}/x.tgz").files()
    whole = bytearray(tar_of(FILES, "w:gz"))
    whole[-6] ^= 1
    folder.write("y.tgz", bytes(whole))
    with pytest.raises(UserError, match=r"y\.tgz: got not a valid tar\.gz \(CRC check failed"):
        open_tree(f"{tmp_path}/y.tgz").files()


def test_damage_inside_a_zip(tmp_path: Path) -> None:
    damaged = "a damaged member, or one larger than 268,435,456 bytes"
    for name in ("x.zip", "stored.zip"):
        tree = write(str(tmp_path), name)
        first, second, third = tree.files()[:3]
        data = bytearray(tree.folder.read(name))
        data[first.offset] = 0
        data[second.offset + 30 + len(second.name) + second.size // 2] ^= 0xFF
        tree.folder.write(name, bytes(data))
        rows = list(tree.rows(file_index([first, second, third]), []))
        assert [row.problem for row in rows] == [damaged, damaged, None]
        with pytest.raises(UserError, match=f"got a damaged {second.name}"):
            tree.read([second.name])


def test_members_with_long_names_and_comments_and_later_versions(tmp_path: Path) -> None:
    long = "d/" * 300 + "1.jpg"
    for name in ("x.zip", "x.tar", "x.tar.gz"):
        assert rows_of(write(str(tmp_path), name, {long: b"image"}), [long])[0].image == b"image"
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for data in (b"old", b"new"):
            info = tarfile.TarInfo("./1.jpg")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    open_folder(str(tmp_path)).write("twice.tar", sink.getvalue())
    tree = open_tree(f"{tmp_path}/twice.tar")
    assert [row.image for row in rows_of(tree, ["1.jpg"])] == [b"new"]
    assert len(tree.files()) == 1


@pytest.mark.parametrize("member", ["../1.jpg", "/etc/1.jpg", "a/../../1.jpg"])
def test_names_that_lead_out_are_refused(member: str, tmp_path: Path) -> None:
    for name in KINDS:
        tree = write(str(tmp_path), name, {"ok.jpg": b"1", member: b"2"})
        with pytest.raises(UserError, match=rf"{name}: got the member {member}"):
            tree.files()
    with pytest.raises(UserError, match=f"got the member {member}"):
        open_tree(str(tmp_path)).find([member])


def test_links_are_refused(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    folder.write("x.tar", tar_of({"1.jpg": b"1"}, links={"2.jpg": "/etc/passwd"}))
    folder.write("x.tgz", tar_of({"1.jpg": b"1"}, "w:gz", links={"2.jpg": "1.jpg"}))
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        info = zipfile.ZipInfo("2.jpg")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    folder.write("x.zip", sink.getvalue())
    for name in ("x.tar", "x.tgz", "x.zip"):
        with pytest.raises(UserError, match=rf"{name}: got a link, 2\.jpg"):
            open_tree(f"{tmp_path}/{name}").files()


def test_encrypted_and_oddly_compressed_members_are_refused(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    folder.write("x.zip", zip_of({"1.jpg": b"1" * 100}, zipfile.ZIP_LZMA))
    with pytest.raises(UserError, match="encrypted or compressed by method 14"):
        open_tree(f"{tmp_path}/x.zip").files()
    data = bytearray(zip_of({"1.jpg": b"1" * 100}))
    at = data.rindex(b"PK\1\2")
    struct.pack_into("<H", data, at + 8, 1)
    folder.write("y.zip", bytes(data))
    with pytest.raises(UserError, match=r"1\.jpg, which is encrypted"):
        open_tree(f"{tmp_path}/y.zip").files()


def test_names_in_another_encoding(tmp_path: Path) -> None:
    """Tars of older systems have them; a zip says that its names are UTF-8."""
    folder = open_folder(str(tmp_path))
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        info = tarfile.TarInfo("caf\xe9.jpg")
        info.size = 5
        tar.addfile(info, io.BytesIO(b"image"))
    plain = sink.getvalue()
    for name, data in {"x.tar": plain, "x.tgz": gzip.compress(plain)}.items():
        folder.write(name, data)
        tree = open_tree(f"{tmp_path}/{name}")
        assert [member.name for member in tree.files()] == ["caf\\xe9.jpg"]
        assert [row.image for row in rows_of(tree, ["caf\\xe9.jpg"])] == [b"image"]
    damaged = zip_of({"caf\xe9.jpg": b"image"}).replace("caf\xe9".encode(), b"caf\xe9.")
    folder.write("x.zip", damaged)
    with pytest.raises(UserError, match=r"x\.zip: got not a valid zip"):
        open_tree(f"{tmp_path}/x.zip").files()


def test_members_without_a_name_or_a_place(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    folder.write("x.tar", tar_of({"": b"image"}))
    data = zip_of({"1.jpg": b"image"})
    folder.write("x.zip", data.replace(b"1.jpg", b"\0.jpg"))
    for name in ("x.tar", "x.zip"):
        with pytest.raises(UserError, match=rf"{name}: got the member without a name"):
            open_tree(f"{tmp_path}/{name}").files()
    folder.write("y.zip", data[1:])
    with pytest.raises(UserError, match=r"y\.zip: got no valid offset of 1\.jpg"):
        open_tree(f"{tmp_path}/y.zip").files()


def test_an_archive_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.tgz: got a missing file"):
        open_tree(f"{tmp_path}/nothing.tgz")
    open_folder(str(tmp_path)).write("x.zip", b"text")
    with pytest.raises(UserError, match=r"x\.zip: got not a valid zip"):
        open_tree(f"{tmp_path}/x.zip").files()
