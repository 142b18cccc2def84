"""Lists of published files: hidden names, symbolic links in every shape, and names that storage cannot hold."""

import os
import re
from pathlib import Path

import pytest

from soda_dist.data.formats import listing
from soda_dist.data.formats.listing import list_direct_files, list_files, list_folders, refuse_repeats
from soda_dist.data.formats.published_names import is_hidden, one_form
from soda_dist.data.preparation import survey
from soda_dist.data.storage.folder import Entry, open_folder
from soda_dist.errors import UserError


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"image")


def names(root: Path, prefix: str = "") -> list[str]:
    return [entry.name for entry in list_files(open_folder(str(root)), prefix)]


@pytest.mark.parametrize(
    "name",
    [
        "._a.jpg",
        "a/.DS_Store",
        "__MACOSX/a.jpg",
        "x/@eaDir/a.jpg",
        "Thumbs.db",
        "a/thumbs.DB",
        "b/desktop.ini",
        ".git/x",
    ],
)
def test_hidden_names(name: str) -> None:
    assert is_hidden(name) and is_hidden(f"./{name}")


@pytest.mark.parametrize("name", ["a.jpg", "./a.jpg", "../a.jpg", "thumbs.db/a.jpg", "a..b/c", "__key__.jpg", "eaDir"])
def test_names_that_are_not_hidden(name: str) -> None:
    assert not is_hidden(name)


def test_one_form_of_a_name() -> None:
    assert one_form("cafe\u0301") == one_form("caf\u00e9") == "caf\u00e9"


def test_lists_are_those_of_storage_without_hidden_files(any_uri: str) -> None:
    folder = open_folder(any_uri)
    for name in ("b/2.jpg", "b/10.jpg", "a/1.jpg", "c.jpg", "bb.jpg", "a/._1.jpg", ".x/1.jpg", "@eaDir/1.jpg"):
        folder.write(name, name.encode())
    shown = ["a/1.jpg", "b/10.jpg", "b/2.jpg", "bb.jpg", "c.jpg"]
    assert list_files(folder) == [Entry(name, len(name)) for name in shown]
    assert [entry.name for entry in list_files(folder, "b")] == ["b/10.jpg", "b/2.jpg", "bb.jpg"]
    assert [entry.name for entry in list_files(folder, "b/")] == ["b/10.jpg", "b/2.jpg"]
    assert list_files(folder, "nothing/") == list_direct_files(folder, "nothing") == []
    assert list_folders(folder) == ["a", "b"]
    assert [entry.name for entry in list_direct_files(folder)] == ["bb.jpg", "c.jpg"]


@pytest.mark.parametrize("target", ["..", "../..", ".", "/"])
def test_a_link_to_a_folder_around_it_is_not_followed(target: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    put(root, "train/cat/1.jpg", "train/dog/2.jpg")
    (root / "train/cat/up").symlink_to(target)
    (root / "train/again").symlink_to(target)
    assert names(root) == ["train/cat/1.jpg", "train/dog/2.jpg"]
    assert names(root, "train/cat/") == ["train/cat/1.jpg"]
    assert list_folders(open_folder(str(root)), "train") == ["cat", "dog"]
    assert list_folders(open_folder(str(root)), "train/cat") == []


def test_links_in_a_ring_end(tmp_path: Path) -> None:
    put(tmp_path, "a/1.jpg", "b/2.jpg")
    for place, other in (("a", "b"), ("b", "a")):
        for number in range(4):
            (tmp_path / place / f"link{number}").symlink_to(f"../{other}")
    found = names(tmp_path)
    assert len(found) == 10
    with pytest.raises(UserError, match=r"a/link0: got a link to the files of b; allowed: each file once"):
        refuse_repeats(open_folder(str(tmp_path)), found)


def test_links_to_nothing_are_rows_that_cannot_be_read(tmp_path: Path) -> None:
    put(tmp_path, "a/1.jpg")
    (tmp_path / "a/3.jpg").symlink_to("nowhere/3.jpg")
    os.mkfifo(tmp_path / "a/4.jpg")
    folder = open_folder(str(tmp_path))
    assert list_files(folder) == [Entry("a/1.jpg", 5), Entry("a/3.jpg", 0)]
    assert list_folders(folder) == ["a"]
    refuse_repeats(folder, names(tmp_path))
    (tmp_path / "a/2.jpg").symlink_to("2.jpg")
    with pytest.raises(UserError, match=r"a/2\.jpg: got a link to itself"):
        list_files(folder)


def test_links_to_elsewhere_are_followed(tmp_path: Path) -> None:
    put(tmp_path, "raw/x/1.jpg", "raw/2.jpg")
    root = tmp_path / "data"
    put(root, "train/cat/0.jpg")
    (root / "train/dog").symlink_to(tmp_path / "raw/x")
    (root / "train/cat/2.jpg").symlink_to(tmp_path / "raw/2.jpg")
    (root / "train/cat/3.jpg").symlink_to(tmp_path / "raw/none.jpg")
    folder = open_folder(str(root))
    listed = [Entry(f"train/{name}", size) for name, size in (("cat/0.jpg", 5), ("cat/2.jpg", 5), ("cat/3.jpg", 0))]
    assert list_files(folder) == [*listed, Entry("train/dog/1.jpg", 5)]
    assert list_folders(folder, "train") == ["cat", "dog"]
    refuse_repeats(folder, names(root))
    (tmp_path / "linked").symlink_to(root)
    linked = open_folder(str(tmp_path / "linked"))
    assert [entry.name for entry in list_files(linked)] == names(root)
    refuse_repeats(linked, names(root))


@pytest.mark.parametrize(
    ("link", "target", "says"),
    [
        ("train/kitty", "cat", "train/kitty: got a link to the files of train/cat"),
        ("train/dog/more", "../cat", "train/dog/more: got a link to the files of train/cat"),
        ("val", "train", "val/cat: got a link to the files of train/cat"),
        ("train/dog/0.jpg", "../cat/1.jpg", "train/dog/0.jpg: got a link to the files of train/cat/1.jpg"),
    ],
)
def test_a_link_that_lists_files_twice_is_refused(link: str, target: str, says: str, tmp_path: Path) -> None:
    put(tmp_path, "train/cat/1.jpg", "train/dog/2.jpg")
    (tmp_path / link).symlink_to(target)
    with pytest.raises(UserError, match=says):
        refuse_repeats(open_folder(str(tmp_path)), names(tmp_path))
    refuse_repeats(open_folder(str(tmp_path)), ["train/cat/1.jpg", "train/dog/2.jpg"])


def test_two_links_to_one_file(tmp_path: Path) -> None:
    put(tmp_path, "raw/1.jpg")
    (tmp_path / "data").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "data" / name).symlink_to("../raw/1.jpg")
    with pytest.raises(UserError, match=r"data/b\.jpg: got a link to the files of a\.jpg"):
        refuse_repeats(open_folder(str(tmp_path / "data")), ["a.jpg", "b.jpg"])


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    try:
        Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9.jpg")).write_bytes(b"x")
    except OSError:
        pytest.skip("the file system takes UTF-8 alone")
    with pytest.raises(UserError, match=r"a file whose name is not UTF-8: .*caf.*; allowed: names in UTF-8; rename it"):
        names(tmp_path)


@pytest.mark.parametrize("key", ["d//train/cat/0.jpg", "d/train//cat/0.jpg", "d/train/cat//0.jpg"])
def test_keys_with_an_empty_part(key: str, s3_uri: str) -> None:
    import boto3

    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    bucket, _, place = s3_uri.removeprefix("s3://").partition("/")
    client.put_object(Bucket=bucket, Key=f"{place}/{key}", Body=b"x")
    with pytest.raises(UserError, match=r"a part that is empty, \. or \.\.: .*; allowed: names such as"):
        list_files(open_folder(f"{s3_uri}/d"))
    with pytest.raises(UserError, match=r"a part that is empty"):
        survey("folder", f"{s3_uri}/d")


def test_importers_list_published_files_here_alone() -> None:
    """So that no importer trusts hidden names or links."""
    package = Path(listing.__file__).parents[1]
    files = [path for room in ("formats", "sources") for path in sorted((package / room).glob("*.py"))]
    direct = [path.name for path in files if re.search(r"\b(folder|place)\.(list|folders|files)\(", path.read_text())]
    assert direct == ["listing.py"]
