"""Imports: complete, in order, the same whatever happened on the way."""

import contextlib
import hashlib
import io
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from soda_dist.data.preparation import importer
from soda_dist.data.shards import ShardReader, check_shards, read_manifest
from soda_dist.data.sources import parse_options
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.errors import UserError
from tests.evaluation.scattered_pool import ScatteredPool

WNIDS = [f"n{i:08d}" for i in range(12)]


def prepare(kind: str, source: str | None, data: str, *options: str) -> tuple[str, list[str]]:
    """By two workers, in any order."""
    lines: list[str] = []
    return importer.prepare(kind, source, data, options, ScatteredPool(), lines.append), lines


def jpeg(*seed: int) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)).save(sink, "JPEG")
    return sink.getvalue()


def parquet_source(uri: str, rows: int = 150) -> Folder:
    """CIFAR-10 as Parquet: `rows` of training, 30 of test."""
    folder = open_folder(uri)
    for split, files in (("train", np.array_split(np.arange(rows), 4)), ("test", [np.arange(1000, 1030)])):
        for number, part in enumerate(files):
            table = pa.table({"image": [jpeg(i) for i in part], "label": [int(i) % 10 for i in part]})
            sink = pa.BufferOutputStream()
            pq.write_table(table, sink, row_group_size=25)
            folder.write(f"{split}/{number}.parquet", sink.getvalue())
    return folder


def image_folders(uri: str) -> Folder:
    folder = open_folder(uri)
    for number, wnid in enumerate(WNIDS):
        for i in range(10):
            folder.write(f"{wnid}/{i}.JPEG", jpeg(number, i))
    return folder


def contents(folder: Folder, split: str, *columns: str) -> pa.Table:
    manifest = read_manifest(folder)
    check_shards(folder, manifest, split)
    reader = ShardReader(folder, manifest, split)
    return pa.concat_tables([reader.group(i, columns) for i in range(len(reader.groups))])


def files_of(folder: Folder) -> dict[str, bytes]:
    return {entry.name: folder.read(entry.name) for entry in folder.list()}


def test_an_import_into_s3(new_bucket, tmp_path: Path) -> None:
    parquet_source(str(tmp_path / "source"))
    uri, lines = prepare(
        "cifar10", str(tmp_path / "source"), f"{new_bucket()}/cifar", "rows_per_group=16", "groups_per_shard=3"
    )
    folder = open_folder(uri)
    manifest = read_manifest(folder)
    assert (manifest.kind, manifest.main_label, manifest.rejected) == ("cifar10", "label", 0)
    assert [shard.groups for shard in manifest.split("train").shards] == [(16, 16, 16)] * 3 + [(6,)]
    assert [shard.groups for shard in manifest.split("test").shards] == [(16, 14)]
    for split, first, count in (("train", 0, 150), ("test", 1000, 30)):
        table = contents(folder, split, "key", "image", "label")
        assert table["key"].to_pylist() == list(range(count))
        assert table["image"].to_pylist() == [jpeg(first + i) for i in range(count)]
        assert table["label"].to_pylist() == [(first + i) % 10 for i in range(count)]
        for shard in manifest.split(split).shards:
            data = folder.read(shard.path)
            metadata = pq.ParquetFile(pa.BufferReader(data)).metadata
            assert hashlib.sha256(data).hexdigest() == shard.sha256
            assert tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)) == shard.groups
    assert any("180 of 180 rows" in line for line in lines)
    assert lines[-1] == "done: 150 train rows in 4 shards, 30 test rows in 1 shard"


def test_a_finished_import_says_so_without_its_source(any_uri: str) -> None:
    source = parquet_source(f"{any_uri}/source", 40)
    uri, _ = prepare("cifar10", source.uri, f"{any_uri}/data")
    before = files_of(open_folder(uri))
    source.remove_tree("train")
    source.remove_tree("test")
    again, lines = prepare("cifar10", source.uri, f"{any_uri}/data/")
    assert again == uri
    assert lines == ["already prepared: 40 train rows, 30 test rows, 0 rejected"]
    assert files_of(open_folder(uri)) == before


def test_the_same_import_gives_the_same_files_anywhere(new_bucket, tmp_path: Path) -> None:
    source = image_folders(str(tmp_path / "source")).uri
    options = ("rows_per_group=8", "groups_per_shard=2")
    found = [
        files_of(open_folder(prepare("imagenet", source, place, *options)[0]))
        for place in (new_bucket(), str(tmp_path / "data"))
    ]
    assert found[0] == found[1]
    assert len(found[0]) == 8 + 8 + 3


def test_sorted_classes_are_shuffled_once_by_the_seed(tmp_path: Path) -> None:
    source = image_folders(str(tmp_path / "source"))
    orders = []
    for seed in (0, 1):
        folder = open_folder(prepare("imagenet", source.uri, str(tmp_path / f"data{seed}"), f"seed={seed}")[0])
        table = contents(folder, "train", "key", "name", "label", "image")
        orders.append(table["name"].to_pylist())
        assert table["key"].to_pylist() == list(range(120))
        assert sorted(orders[-1]) == sorted(entry.name for entry in source.list())
        for name, label, image in zip(*(table[c].to_pylist() for c in ("name", "label", "image")), strict=True):
            assert WNIDS[label] == name.split("/")[0]
            assert image == source.read(name)
        assert len({name.split("/")[0] for name in orders[-1][:24]}) > 6, "a batch should see many classes"
    assert orders[0] != orders[1]


def test_objects_stay_together_over_groups_and_shards(tmp_path: Path) -> None:
    """Three views each, in groups of four and shards of eight: every source is another view of the target's object."""
    from soda_dist.config.sections import Data
    from soda_dist.data.order import Order
    from soda_dist.data.pairs import check_data, read_pairs

    options = ("objects=31", "test_objects=0", "views=3", "size=16", "rows_per_group=4", "groups_per_shard=2")
    folder = open_folder(prepare("synthetic", None, str(tmp_path / "data"), *options)[0])
    manifest = read_manifest(folder)
    assert len(manifest.split("train").shards) == 12
    objects = contents(folder, "train", "object")["object"].to_numpy()
    assert (objects == np.arange(93) // 3).all()
    reader = ShardReader(folder, manifest, "train")
    data = Data(source_size=16, target_size=16, views="object", sources=(1, 2), pose="cameras", augment="none")
    check_data(reader, data)
    pairs = read_pairs(reader, Order(reader.groups, 0, 8, 4), 0, 93, seed=0, data=data)
    stored = contents(folder, "train", "camera_to_world")["camera_to_world"].to_pylist()
    places = {np.float32(camera[:12]).tobytes(): key for key, camera in enumerate(stored)}
    assert pairs.ok.all()
    for key, present, source, target in zip(
        pairs.key, pairs.present, pairs.source_pose, pairs.target_pose, strict=True
    ):
        shown = [places[pose[:12].tobytes()] for pose in source[present]]
        assert places[target[:12].tobytes()] == key
        assert len(set(shown)) == len(shown) in (1, 2)
        assert set(shown) <= {key // 3 * 3 + view for view in range(3)} - {key}


def test_rows_that_cannot_be_read_are_listed_and_leave_no_hole(
    any_uri: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = image_folders(str(tmp_path_factory.mktemp("source")))
    bad = {f"{WNIDS[2]}/3.JPEG": b"no image", f"{WNIDS[7]}/0.JPEG": jpeg(7, 0)[:-40], f"{WNIDS[9]}/5.JPEG": b""}
    good = {entry.name for entry in source.list()} - set(bad)
    for name, data in bad.items():
        source.write(name, data)
    uri, lines = prepare("imagenet", source.uri, f"{any_uri}/data", "rows_per_group=4", "groups_per_shard=5")
    folder = open_folder(uri)
    manifest = read_manifest(folder)
    listed = [json.loads(line) for line in folder.read("rejected.jsonl").splitlines()]
    reasons = {
        f"{WNIDS[2]}/3.JPEG": "not an image",
        f"{WNIDS[7]}/0.JPEG": "a truncated image",
        f"{WNIDS[9]}/5.JPEG": "an empty file",
    }
    assert {row["name"]: row["reason"] for row in listed} == reasons
    assert manifest.rejected == 3
    assert any(line.startswith("3 rows could not be read") for line in lines)
    table = contents(folder, "train", "key", "name", "image", "label")
    assert table["key"].to_pylist() == list(range(117))
    assert set(table["name"].to_pylist()) == good
    assert all(
        image == source.read(name)
        for name, image in zip(table["name"].to_pylist(), table["image"].to_pylist(), strict=True)
    )
    shards = manifest.split("train").shards
    assert sum(shard.rows for shard in shards) == 117
    assert all(groups == 4 for shard in shards for groups in shard.groups[:-1])
    short = [shard for shard in shards if shard.rows < 20]
    assert 1 <= len(short) <= 3
    for shard in shards:
        assert hashlib.sha256(folder.read(shard.path)).hexdigest() == shard.sha256
    _, lines = prepare("imagenet", source.uri, f"{any_uri}/data", "rows_per_group=4", "groups_per_shard=5")
    assert lines == ["already prepared: 117 train rows, 3 rejected"]


def test_a_shard_of_which_no_row_is_left(tmp_path: Path) -> None:
    source = parquet_source(str(tmp_path / "source"), 8)
    table = pa.table({"image": [b"bad"] * 8 + [jpeg(1)] * 8, "label": [0] * 16})
    pq.write_table(table, tmp_path / "source/test/0.parquet")
    folder = open_folder(
        prepare("cifar10", source.uri, str(tmp_path / "data"), "rows_per_group=4", "groups_per_shard=1")[0]
    )
    assert [shard.path for shard in read_manifest(folder).split("test").shards] == [
        "test/00002.parquet",
        "test/00003.parquet",
    ]
    assert contents(folder, "test", "key")["key"].to_pylist() == list(range(8))


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_import_is_mended_by_the_same_command(
    damage: str, any_uri: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = image_folders(str(tmp_path_factory.mktemp("source")))
    source.write(f"{WNIDS[0]}/1.JPEG", b"not an image")
    command = ("imagenet", source.uri, f"{any_uri}/data", "rows_per_group=8", "groups_per_shard=2")
    folder = open_folder(prepare(*command)[0])
    before = files_of(folder)
    path = "train/00004.parquet"
    if damage == "missing":
        folder.remove(path)
    else:
        folder.write(path, before[path][:-10])
    _, lines = prepare(*command)
    assert lines[0].startswith(f"rebuilding {folder.uri}/{path}: found ")
    assert lines[3] == "reusing 7 of 8 shards of an earlier run"
    assert files_of(folder) == before


REFUSALS = {
    "a foreign file": ({"notes.txt": b"mine"}, "got a folder that holds notes.txt"),
    "a run": ({"config.yaml": b"", "manifest.json": b"{}"}, "got a folder that holds config.yaml"),
    "shards of nobody": ({"train/00000.parquet": b"1"}, r"got a folder that holds train/00000\.parquet"),
    "another version": ({"manifest.json": b'{"version": 7}'}, "got version 7"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_folder_that_holds_something_else_is_refused(case: str, any_uri: str) -> None:
    files, says = REFUSALS[case]
    folder = open_folder(f"{any_uri}/data")
    for name, data in files.items():
        folder.write(name, data)
    with pytest.raises(UserError, match=says) as caught:
        prepare("synthetic", None, folder.uri)
    assert "\n" not in str(caught.value)
    assert files_of(folder) == files


def test_another_import_is_refused(tmp_path: Path) -> None:
    data, source = str(tmp_path / "data"), parquet_source(str(tmp_path / "source"), 20).uri
    prepare("cifar10", source, data)
    before = files_of(open_folder(data))
    for command, says in (
        (("cifar10", source, data, "seed=1"), f"got an import of cifar10 from {source} with other options"),
        (("cifar10", str(tmp_path), data), f"got an import of cifar10 from {source};"),
        (("synthetic", None, data), f"got an import of cifar10 from {source};"),
    ):
        with pytest.raises(UserError, match=says):
            prepare(*command)
    assert files_of(open_folder(data)) == before
    (tmp_path / "data/_import/import.json").unlink()
    with pytest.raises(UserError, match="with other options"):
        prepare("cifar10", source, data, "seed=1")


def test_mistakes_of_the_user(s3_server: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / WNIDS[0]).mkdir(parents=True)
    data = str(tmp_path / "data")
    for command, says in (
        (("mnist", None, data), "kind: got mnist"),
        (("imagenet", None, data), "--source: got nothing"),
        (("imagenet", str(source), data), "--source: got no images in train"),
        (("imagenet", str(tmp_path / "none"), data + "2"), "none of ImageNet's layouts"),
        (("synthetic", None, "s3://no-such-bucket/data"), "a bucket that does not exist"),
        (("cifar10", "s3://no-such-bucket/data", data + "3"), "a bucket that does not exist"),
    ):
        with pytest.raises(UserError, match=says):
            prepare(*command)
    assert not (tmp_path / "data2").exists(), "nothing is written before the source is known"


def test_a_source_whose_images_are_all_bad(tmp_path: Path) -> None:
    source = open_folder(str(tmp_path / "source"))
    source.write(f"{WNIDS[0]}/1.JPEG", b"text")
    with pytest.raises(UserError, match=r"got no readable image in train \(the first: not an image\)") as caught:
        prepare("imagenet", source.uri, str(tmp_path / "data"))
    assert "rejected.jsonl" in str(caught.value)
    assert not (tmp_path / "data/manifest.json").exists()
    assert b"not an image" in (tmp_path / "data/rejected.jsonl").read_bytes()


def test_a_damaged_source_is_one_line(tmp_path: Path) -> None:
    source = parquet_source(str(tmp_path / "source"), 20)
    source.write("train/3.parquet", b"PAR1 no more")
    with pytest.raises(UserError, match=r"train/3\.parquet: got not valid Parquet") as caught:
        prepare("cifar10", source.uri, str(tmp_path / "data"))
    assert "\n" not in str(caught.value)


def test_kill_and_run_again(tmp_path: Path) -> None:
    """SIGKILL of the job and its two workers in the middle: finished shards stay, and the result is the same."""
    options = ["objects=160", "test_objects=40", "views=2", "size=48", "rows_per_group=8", "groups_per_shard=2"]
    data = tmp_path / "data"
    code = (
        "import sys\nfrom soda_dist.data.preparation.importer import prepare\n"
        "from soda_dist.parallel.local_pool import LocalPool\n"
        "if __name__ == '__main__':\n"
        "    prepare('synthetic', None, sys.argv[1], sys.argv[2:], LocalPool(2))\n"
    )
    job = subprocess.Popen(
        [sys.executable, "-c", code, str(data), *options], start_new_session=True, stdout=subprocess.DEVNULL
    )
    records, deadline = data / "_import/shards", time.monotonic() + 120
    while time.monotonic() < deadline and (not records.exists() or len(list(records.glob("*.json"))) < 3):
        assert job.poll() is None, "the job should still be running"
        time.sleep(0.02)
    everyone = psutil.Process(job.pid).children(recursive=True)
    job.kill()
    for process in everyone:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    job.wait()
    psutil.wait_procs(everyone, timeout=60)
    assert not (data / "manifest.json").exists()
    finished = [path.stem for path in records.glob("*.json")]
    assert 3 <= len(finished) < 25
    shards = [data / f"{stem[:-6]}/{stem[-5:]}.parquet" for stem in finished]
    written = {shard: shard.stat().st_mtime_ns for shard in shards}
    (data / "train/.soda-tmp-0").write_bytes(b"half a shard")
    _, lines = prepare("synthetic", None, str(data), *options)
    assert lines[2] == f"reusing {len(finished)} of 25 shards of an earlier run"
    assert {shard: shard.stat().st_mtime_ns for shard in shards} == written
    whole = open_folder(prepare("synthetic", None, str(tmp_path / "whole"), *options)[0])
    assert files_of(open_folder(str(data))) == files_of(whole)
    assert not list(data.rglob(".soda-tmp-*"))


@pytest.mark.parametrize(
    ("kind", "option", "fingerprint"),
    [
        ("folder", "seed=3", "72b9be65e952d9effcddaf8d6fcd99896d89ebae5e62e19a72013b0764d5b0e6"),
        ("webdataset", "classes=3", "0406df0fb681fe31b0fe1ea2f66259f041f4aee5dc3248a223969688d68c15ff"),
        ("flowers102", "seed=0", "9f0a918d9ca7e7b365113dd5a5c695c73a4c08687f90d1fe71fddb51224c9d47"),
    ],
)
def test_options_that_came_later_change_no_fingerprint_at_their_defaults(
    kind: str, option: str, fingerprint: str
) -> None:
    """As the release before `limit`, `unlabelled`, `image` and `all` computed them."""
    assert importer._claim(kind, "/published", parse_options(kind, [option])).fingerprint == fingerprint
    other = importer._claim(kind, "/published", parse_options(kind, [option, "limit=5"]))
    assert other.fingerprint != fingerprint
