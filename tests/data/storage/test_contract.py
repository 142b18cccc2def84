"""One contract of `Folder` on the disk, on a real S3 server and on a real Google Cloud Storage server."""

import json
import os
import pickle
from collections.abc import Callable

import pytest

from soda_dist.data.storage.folder import Entry, Folder, open_folder
from soda_dist.errors import UserError
from tests.stores import put_object

THROUGH_A_FILE = "file: got a path through a file; allowed: a folder"
NEIGHBOURS = ("a-b", "a.gz", "a/b/c", "a/z", "ab/x", "b")
"""Files around the folder `a`, whose name others begin with."""


def names(folder: Folder, prefix: str = "") -> list[str]:
    return [entry.name for entry in folder.list(prefix)]


def filled(uri: str) -> Folder:
    folder = open_folder(uri).child("root")
    for name in NEIGHBOURS:
        folder.write(name, name.encode())
    return folder


def test_what_is_written_is_read_back(every_uri: str) -> None:
    folder = open_folder(f"{every_uri}/a//b/")
    assert folder.list() == []
    assert not folder.exists("x.bin")
    folder.write("x.bin", b"first")
    folder.write("x.bin", bytes(range(256)))
    assert folder.read("x.bin") == bytes(range(256))
    assert folder.exists("x.bin")
    with folder.open("x.bin") as file:
        assert file.size() == 256
        assert file.read_at(3, 100) == bytes([100, 101, 102])
        assert file.read_at(3, 255) == b"\xff"
    assert open_folder(every_uri).child("a").child("b").read("x.bin") == bytes(range(256))
    assert pickle.loads(pickle.dumps(folder)).read("x.bin") == bytes(range(256))


def test_an_empty_file(every_uri: str) -> None:
    folder = open_folder(every_uri)
    folder.write("a/empty", b"")
    assert folder.read("a/empty") == b"" and folder.exists("a/empty")
    assert folder.list() == folder.files("a") == [Entry("a/empty", 0)]
    with folder.open("a/empty") as file:
        assert file.size() == 0


@pytest.mark.parametrize(
    "name", ["a.tar.gz", "a.zst", "a b+ü#?.bin", "%41%2F.bin", "日本/é e\u0301", "a&b=c;d'e", "..a/b..", "-", "~"]
)
def test_no_name_changes_the_bytes(every_uri: str, name: str) -> None:
    folder = open_folder(every_uri)
    folder.write(f"x/{name}", b"x" * 100)
    assert folder.list() == [Entry(f"x/{name}", 100)]
    assert folder.read(f"x/{name}") == b"x" * 100
    top = name.partition("/")
    assert folder.folders("x") == ([top[0]] if top[1] else [])
    assert folder.child(f"x/{name}").uri == f"{every_uri}/x/{name}"
    folder.remove(f"x/{name}")
    assert folder.list() == []


def test_large_files_survive(every_uri: str) -> None:
    data = os.urandom(23 * 2**20)
    folder = open_folder(every_uri)
    folder.write("large", data)
    assert folder.read("large") == data
    assert folder.list() == [Entry("large", len(data))]


def test_json(every_uri: str) -> None:
    folder = open_folder(every_uri)
    folder.write_json("a.json", {"x": [1, None, "ü"]})
    assert folder.read_json("a.json") == {"x": [1, None, "ü"]} == json.loads(folder.read("a.json"))
    folder.write("b.json", b"{broken")
    with pytest.raises(UserError, match=r"b\.json: got a file that is not JSON"):
        folder.read_json("b.json")


def test_listing_is_recursive_sorted_and_by_prefix(every_uri: str) -> None:
    folder = filled(every_uri)
    assert names(folder) == list(NEIGHBOURS)
    assert folder.list("a/") == [Entry("a/b/c", 5), Entry("a/z", 3)]
    assert names(folder, "a") == ["a-b", "a.gz", "a/b/c", "a/z", "ab/x"]
    assert names(folder, "a/z") == ["a/z"]
    assert folder.folders() == ["a", "ab"]
    assert folder.folders("a") == folder.folders("a/") == folder.child("a").folders() == ["b"]
    assert folder.files() == [Entry("a-b", 3), Entry("a.gz", 4), Entry("b", 1)]
    assert folder.files("a") == folder.files("a/") == [Entry("a/z", 3)]


def test_what_is_missing_is_empty(every_uri: str) -> None:
    folder = filled(every_uri)
    for name in ("nothing", "a/nothing", "a/b/nothing/deeper"):
        assert folder.folders(name) == folder.files(name) == folder.list(f"{name}/") == []
        assert folder.child(name).list() == []
        assert not folder.exists(name)
    assert not folder.exists("a"), "a folder is not a file"


def test_removing(every_uri: str) -> None:
    folder = filled(every_uri)
    folder.remove("b")
    for _ in range(2):
        folder.remove_tree("a")
        assert names(folder) == ["a-b", "a.gz", "ab/x"] and folder.folders() == ["ab"]
    folder.remove_tree("never/existed")
    folder.child("never").remove_tree("")
    folder.remove("ab/x")
    assert folder.files("ab") == []
    for _ in range(2):
        folder.remove_tree("")
        assert folder.list() == []
    folder.write("a/again", b"1")
    assert names(open_folder(every_uri)) == ["root/a/again"]


def test_a_missing_file_is_named(every_uri: str) -> None:
    folder = open_folder(every_uri)
    for read in (folder.read, folder.open, folder.read_json, folder.remove):
        with pytest.raises(FileNotFoundError, match=f"{every_uri}/no/such"):
            read("no/such")


def test_a_file_is_not_a_folder(every_uri: str) -> None:
    folder = open_folder(every_uri)
    folder.write("file", b"1")
    inside = folder.child("file")
    for call in (inside.list, inside.files, inside.folders, lambda: folder.remove_tree("file")):
        with pytest.raises(UserError, match=THROUGH_A_FILE):
            call()
    assert folder.read("file") == b"1"


def test_a_folder_is_not_a_file(store_uri: str) -> None:
    folder = filled(store_uri)
    for call in (folder.read, folder.open, folder.remove):
        with pytest.raises(FileNotFoundError, match="root/a"):
            call("a")
    assert names(folder) == list(NEIGHBOURS)


def test_a_name_may_be_a_file_and_a_folder(store_uri: str) -> None:
    folder = filled(store_uri)
    folder.write("a", b"the file")
    assert folder.read("a") == b"the file"
    assert names(folder, "a/") == ["a/b/c", "a/z"]
    assert folder.folders() == ["a", "ab"] and folder.folders("a") == ["b"]
    assert [entry.name for entry in folder.files()] == ["a", "a-b", "a.gz", "b"]


def test_empty_parts_of_a_name_do_not_count(every_uri: str) -> None:
    folder = filled(every_uri)
    assert folder.read("a//b/./c") == b"a/b/c" == folder.read("./a/b//c")
    folder.write("n//o/", b"1")
    assert folder.exists("n/o") and names(folder, "n/") == ["n/o"]


def test_markers_of_folders_are_folders(store_uri: str) -> None:
    """A console writes an empty object `a/` for an empty folder."""
    for key in ("d/", "d/marker/", "d/full/"):
        put_object(store_uri, key, b"")
    put_object(store_uri, "d/full/x", b"1")
    folder = open_folder(store_uri).child("d")
    assert folder.folders() == ["full", "marker"]
    assert folder.list() == folder.files("full") == [Entry("full/x", 1)]
    assert folder.files() == folder.files("marker") == folder.folders("marker") == []
    assert not folder.exists("marker")
    folder.remove_tree("marker")
    assert folder.folders() == ["full"]


@pytest.mark.parametrize("key", ["d//train/cat/0.jpg", "d/./0.jpg", "d/train/../0.jpg", "d/train//0.jpg"])
def test_keys_that_no_path_has_are_one_line(store_uri: str, key: str) -> None:
    put_object(store_uri, key, b"1")
    folder = open_folder(store_uri)
    for listing in (folder.list, folder.child("d").list):
        with pytest.raises(
            UserError, match=r"got an object whose name has a part that is empty, \. or \.\.: '.*0.jpg'"
        ):
            listing()


def test_a_listing_of_folders_reads_one_level_on_s3(s3_uri: str) -> None:
    """A key that no listing survives, deeper down, is not met."""
    put_object(s3_uri, "a/b//0.jpg", b"1")
    assert open_folder(s3_uri).folders() == ["a"]
    assert open_folder(s3_uri).files() == []


MISSING = {"s3": "s3_server", "gs": "gcs_server"}


@pytest.mark.parametrize("scheme", MISSING)
def test_a_missing_bucket(scheme: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(MISSING[scheme])
    folder = open_folder(f"{scheme}://no-such-bucket/data")
    calls: list[Callable[[], object]] = [folder.list, lambda: folder.exists("x"), lambda: folder.remove_tree("x")]
    calls += [lambda: folder.read("x"), lambda: folder.write("x", b"1")]
    for call in calls:
        with pytest.raises(UserError, match=f"{scheme}://no-such-bucket: got a bucket that does not exist"):
            call()
