"""Folders that grow and shrink: what is added, what is gone for good, and that everything else stays."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from soda_dist.data.preparation import addition, append, check, parse_rows, prepare, removal, remove
from soda_dist.data.shards import Manifest, ShardReader, read_manifest
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.errors import UserError
from tests.data.preparation.test_importer import jpeg, parquet_source
from tests.evaluation.scattered_pool import ScatteredPool

SMALL = ("rows_per_group=2", "groups_per_shard=2")


def source_of(root: Path, *classes: str, count: int = 7) -> Folder:
    folder = open_folder(str(root / "source"))
    for split, rows in (("train", count), ("test", 3)):
        for number, name in enumerate(classes):
            for i in range(rows):
                folder.write(f"{split}/{name}/{i}.jpg", jpeg(number, i, split == "test"))
    return folder


def prepared(root: Path, *classes: str, options: tuple[str, ...] = SMALL) -> tuple[Folder, Folder]:
    source, data = source_of(root, *classes), open_folder(str(root / "data"))
    prepare("folder", source.uri, data.uri, options)
    return source, data


def rows_of(data: Folder) -> dict[str, tuple[bytes, str]]:
    """Image and class of each row by name; keys are checked on the way."""
    manifest, found = read_manifest(data), {}
    for split in manifest.splits:
        reader, key = ShardReader(data, manifest, split), 0
        for group in range(len(reader.groups)):
            for row in reader.group(group, ["key", "image", "name", "label"]).to_pylist():
                assert row["key"] == key
                key += 1
                found[row["name"]] = row["image"], manifest.labels["label"].names[row["label"]]
        assert key == manifest.splits[split].rows
    check(data.uri, None)
    return found


def files(data: Folder) -> set[str]:
    return {entry.name for entry in data.list()}


def test_removed_rows_are_in_no_file_and_the_others_are_as_before(tmp_path: Path) -> None:
    _, data = prepared(tmp_path, "cat", "dog")
    before, manifest = rows_of(data), read_manifest(data)
    gone = [before[name][0] for name in ("train/cat/3.jpg", "train/dog/6.jpg")]
    key = [row for row in before if row.startswith("train/")].index("train/dog/6.jpg")
    lines: list[str] = []
    remove(data.uri, ["train/cat/3.jpg", f"train/{key}"], ScatteredPool(), lines.append)
    assert rows_of(data) == {n: row for n, row in before.items() if n not in ("train/cat/3.jpg", "train/dog/6.jpg")}
    assert f"removing train/{key} (train/dog/6.jpg)" in lines
    stored = b"".join(data.read(name) for name in files(data))
    assert not any(image in stored for image in gone) and b"train/cat/3.jpg" not in stored
    after = read_manifest(data)
    assert after.parent == manifest.digest != after.digest and after.splits["test"] == manifest.splits["test"]
    assert files(data) == {"manifest.json", *(s.path for split in after.splits.values() for s in split.shards)}


def test_shards_before_the_first_removed_row_are_not_written_again(tmp_path: Path) -> None:
    _, data = prepared(tmp_path, "cat", "dog")
    before = read_manifest(data).splits["train"].shards
    remove(data.uri, [f"train/{before[0].rows}"])
    after = read_manifest(data).splits["train"].shards
    assert after[0] == before[0] and {s.path for s in after[1:]}.isdisjoint(s.path for s in before)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (["train/999"], r"--remove: got train/999, which is no row; .*nothing was removed"),
        (["nothing.jpg", "none.jpg", "train/0"], r"got nothing.jpg, which is no row \(and 1 more\)"),
        ([], "got no rows"),
        ([f"test/{i}" for i in range(6)], "got all rows of test; allowed: some of them; import the data without test"),
    ],
)
def test_a_wrong_removal_changes_nothing(rows: list[str], says: str, tmp_path: Path) -> None:
    _, data = prepared(tmp_path, "cat", "dog")
    before = {name: data.read(name) for name in files(data)}
    with pytest.raises(UserError, match=says):
        remove(data.uri, rows)
    assert {name: data.read(name) for name in files(data)} == before


def test_a_folder_that_grew_gains_the_new_files_alone(tmp_path: Path) -> None:
    source, data = prepared(tmp_path, "cat", "dog")
    before, manifest = rows_of(data), read_manifest(data)
    remove(data.uri, ["train/dog/0.jpg"])
    source.write("train/cat/new.jpg", jpeg(77))
    source.write("train/cat/broken.jpg", b"no image")
    source.write("train/ant/0.jpg", jpeg(78))
    source.write("test/dog/new.jpg", jpeg(79))
    append("folder", source.uri, data.uri, SMALL, ScatteredPool())
    new = {
        "train/cat/new.jpg": (jpeg(77), "cat"),
        "train/ant/0.jpg": (jpeg(78), "ant"),
        "test/dog/new.jpg": (jpeg(79), "dog"),
    }
    del before["train/dog/0.jpg"]
    assert rows_of(data) == before | new
    after = read_manifest(data)
    assert after.labels["label"].names == ("cat", "dog", "ant") and manifest.labels["label"].names == ("cat", "dog")
    assert after.rejected == 1 and [json.loads(x)["name"] for x in data.read("rejected.jsonl").splitlines()] == [
        "train/cat/broken.jpg"
    ]
    lines: list[str] = []
    append("folder", source.uri, data.uri, SMALL, say=lines.append)
    assert lines[-1] == "already up to date: nothing was added" and read_manifest(data) == after


def test_a_file_that_was_rejected_and_is_mended_is_added_and_no_longer_listed(tmp_path: Path) -> None:
    source = source_of(tmp_path, "cat", "dog")
    source.write("train/cat/1.jpg", b"no image")
    data = open_folder(str(tmp_path / "data"))
    prepare("folder", source.uri, data.uri, SMALL)
    source.write("train/cat/1.jpg", jpeg(5))
    append("folder", source.uri, data.uri, SMALL)
    assert rows_of(data)["train/cat/1.jpg"] == (jpeg(5), "cat")
    assert read_manifest(data).rejected == 0 and data.read("rejected.jsonl") == b""


@pytest.mark.parametrize("at", ["make_shards", "publish"])
def test_an_addition_that_was_interrupted_leaves_the_data_and_is_resumed(
    at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, data = prepared(tmp_path, "cat", "dog")
    before = rows_of(data)
    for i in range(20, 29):
        source.write(f"train/cat/{i}.jpg", jpeg(i))
    done = getattr(addition, at)
    if at == "make_shards":  # after the shards

        def interrupted(*args: object) -> None:
            done(*args)
            raise KeyboardInterrupt
    else:

        def interrupted(*args: object) -> None:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(addition, at, interrupted)
        with pytest.raises(KeyboardInterrupt):
            append("folder", source.uri, data.uri, SMALL)
    assert len(ShardReader(data, read_manifest(data), "train").column("name")) == 14
    lines: list[str] = []
    append("folder", source.uri, data.uri, SMALL, say=lines.append)
    assert any("reusing 3 of 3 shards" in line for line in lines)
    assert len(rows_of(data)) == len(before) + 9 and not any(name.startswith("_append") for name in files(data))


def test_leftovers_of_an_interrupted_removal_go_with_the_next_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, data = prepared(tmp_path, "cat", "dog")
    before = rows_of(data)

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(removal, "publish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            remove(data.uri, ["train/0"])
    with pytest.raises(UserError, match="4 problems"):
        check(data.uri, 1)
    with pytest.raises(UserError):
        remove(data.uri, ["nothing"])
    assert rows_of(data) == before
    listed = {shard.path for split in read_manifest(data).splits.values() for shard in split.shards}
    assert {name for name in files(data) if name.endswith(".parquet") and "/index/" not in name} == listed


def test_images_are_reencoded_as_those_of_the_folder(tmp_path: Path) -> None:
    source, data = prepared(tmp_path, "cat", "dog", options=(*SMALL, "max_side=8"))
    source.write("train/cat/new.jpg", jpeg(5))
    with pytest.raises(UserError, match=r"max_side, quality: got images re-encoded .* 9 px"):
        append("folder", source.uri, data.uri, (*SMALL, "max_side=9"))
    append("folder", source.uri, data.uri, SMALL)
    assert rows_of(data)["train/cat/new.jpg"][0] != jpeg(5)


def test_what_does_not_fit_the_data_is_refused(tmp_path: Path) -> None:
    source, data = prepared(tmp_path, "cat", "dog")
    before = {name: data.read(name) for name in files(data)}
    with pytest.raises(UserError, match=r"--source: got columns .*allowed: those of the data"):
        append("folder", source.uri, data.uri, (*SMALL, "classes=false"))
    source.write("val/cat/0.jpg", jpeg(1))
    with pytest.raises(UserError, match=r"--source: got rows of a split val; allowed: "):
        append("folder", source.uri, data.uri, SMALL)
    assert {name: data.read(name) for name in files(data) if not name.startswith("_append")} == before


def test_rows_of_parquet_are_all_added(tmp_path: Path) -> None:
    source, data = parquet_source(str(tmp_path / "source")), open_folder(str(tmp_path / "data"))
    prepare("parquet", source.uri, data.uri)
    rows = read_manifest(data).splits["train"].rows
    append("parquet", source.uri, data.uri)
    assert read_manifest(data).splits["train"].rows == 2 * rows


def test_a_changed_folder_is_not_rebuilt_from_its_source(tmp_path: Path) -> None:
    source, data = prepared(tmp_path, "cat", "dog")
    remove(data.uri, ["train/0"])
    lines: list[str] = []
    prepare("folder", source.uri, data.uri, SMALL, say=lines.append)
    assert lines[-1].startswith("already prepared: 13 train rows")
    data.remove(read_manifest(data).splits["train"].shards[0].path)
    with pytest.raises(UserError, match=r"a missing shard.*restore it from a copy"):
        prepare("folder", source.uri, data.uri, SMALL)
    assert data.exists("manifest.json")


def test_a_damaged_shard_is_not_copied(tmp_path: Path) -> None:
    _, data = prepared(tmp_path, "cat", "dog")
    path = read_manifest(data).splits["train"].shards[1].path
    content = bytearray(data.read(path))
    content[40] ^= 1
    data.write(path, bytes(content))
    with pytest.raises(UserError, match="an altered shard"):
        remove(data.uri, ["train/0"])


def test_the_digest_is_that_of_the_contents(tmp_path: Path) -> None:
    _, data = prepared(tmp_path, "cat", "dog")
    tree = data.read_json("manifest.json")
    assert tree["digest"] == read_manifest(data).digest
    del tree["digest"]
    data.write_json("manifest.json", tree)  # as earlier releases wrote it
    manifest = read_manifest(data)
    fields = manifest.model_dump()
    assert Manifest(**fields | {"source": "elsewhere", "parent": "0" * 64}).digest == manifest.digest
    for changed in ({"main_label": None}, {"splits": {"train": fields["splits"]["train"]}}):
        assert Manifest(**fields | changed).digest != manifest.digest
    data.write_json("manifest.json", {**tree, "digest": "0" * 64})
    with pytest.raises(UserError, match="contents that differ from its digest"):
        read_manifest(data)


def test_rewritten_shards_have_full_checksums(tmp_path: Path) -> None:
    _, data = prepared(tmp_path, "cat", "dog")
    remove(data.uri, ["train/1"])
    path = read_manifest(data).splits["train"].shards[0].path
    assert pq.read_table(tmp_path / "data" / path, page_checksum_verification=True).column("key").to_pylist() == [
        0,
        1,
        2,
    ]


def test_rows_to_remove_are_named_at_once_or_in_a_file(tmp_path: Path) -> None:
    _, data = prepared(tmp_path, "cat", "d\u00f6g")
    listed = tmp_path / "rows.txt"
    listed.write_bytes("\ufefftrain/do\u0308g/1.jpg\r\n\r\ntrain/0\r\n".encode())
    assert parse_rows("train/0,a.jpg") == ["train/0", "a.jpg"]
    assert parse_rows(f"@{listed}") == ["train/d\u00f6g/1.jpg", "train/0"]
    remove(data.uri, parse_rows(f"@{listed}"))
    assert read_manifest(data).splits["train"].rows == 12
    with pytest.raises(UserError, match=r"--remove: got @.*, which does not exist"):
        parse_rows(f"@{tmp_path}/nothing.txt")
