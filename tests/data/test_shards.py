"""Shards and manifests: what is written is read, and what is missing, cut, altered or of another time is refused."""

import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from soda_dist.data.shards import (
    Label,
    Manifest,
    ShardReader,
    Split,
    _Cache,
    check_shards,
    read_manifest,
    shard_schema,
    write_manifest,
    write_shard,
)
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.errors import UserError

COLUMNS = (pa.field("label", pa.int32()), pa.field("pose", pa.list_(pa.float32(), 16)))
GROUPS = ((8, 8, 8), (8, 5), (8,))


def image(key: int) -> bytes:
    """Bytes that no codec shrinks, of a length of their own."""
    return np.random.default_rng(key).bytes(200 + key)


def table(keys: range) -> pa.Table:
    columns = {
        "key": keys,
        "image": [image(key) for key in keys],
        "name": [f"image {key}" for key in keys],
        "label": [key % 3 for key in keys],
        "pose": [np.arange(16, dtype=np.float32) + key for key in keys],
    }
    schema = shard_schema(COLUMNS)
    return pa.table([pa.array(columns[field.name], field.type) for field in schema], schema=schema)


def make_data(uri: str) -> tuple[Folder, Manifest]:
    """Three shards of one split, 45 rows, each a function of its key."""
    folder, shards, key = open_folder(uri), [], 0
    for number, groups in enumerate(GROUPS):
        tables = []
        for rows in groups:
            tables.append(table(range(key, key + rows)))
            key += rows
        shard = write_shard(folder, f"train/{number:05d}.parquet", tables, shard_schema(COLUMNS))
        assert shard is not None
        shards.append(shard)
    manifest = Manifest(
        version=2,
        kind="test",
        source="",
        fingerprint=uri,
        splits={"train": Split(rows=key, shards=tuple(shards))},
        labels={"label": Label(kind="class", names=("a", "b", "c"))},
        main_label="label",
        rejected=0,
    )
    write_manifest(folder, manifest)
    return folder, manifest


def test_the_manifest_survives_its_file(any_uri: str) -> None:
    folder, manifest = make_data(any_uri)
    assert read_manifest(folder) == manifest
    assert manifest.split("train").groups == (8, 8, 8, 8, 5, 8)
    assert json.loads(folder.read("manifest.json"))["splits"]["train"]["shards"][1]["groups"] == [8, 5]


def test_groups_are_read_by_their_number_in_the_split(any_uri: str) -> None:
    folder, manifest = make_data(any_uri)
    reader = pickle.loads(pickle.dumps(ShardReader(folder, manifest, "train")))
    first = np.cumsum([0, *reader.groups])
    assert reader.groups == (8, 8, 8, 8, 5, 8)
    for number in (5, 0, 4, 2, 3, 1, 5):
        keys = range(first[number], first[number + 1])
        assert reader.group(number, ["key", "image", "name", "label", "pose"]).equals(table(keys)), number
        assert reader.group(number, ["label", "image"]).equals(table(keys).select(["label", "image"]))
    for number in (-1, 6):
        with pytest.raises(IndexError):
            reader.group(number, ["key"])


def test_a_column_is_read_over_all_shards(any_uri: str) -> None:
    folder, manifest = make_data(any_uri)
    reader = ShardReader(folder, manifest, "train")
    whole = table(range(45))
    for name in ("label", "pose", "key"):
        assert reader.column(name).equals(whole.column(name)), name
    assert reader.schema().equals(shard_schema(COLUMNS))
    with pytest.raises(UserError, match="column: got hue; allowed: key, image, name, label, pose"):
        reader.column("hue")


def test_a_column_of_a_missing_shard(tmp_path: Path) -> None:
    folder, manifest = make_data(str(tmp_path))
    (tmp_path / "train/00002.parquet").unlink()
    with pytest.raises(UserError, match=r"00002\.parquet: got a missing shard"):
        ShardReader(folder, manifest, "train").column("label")


def test_threads_may_share_a_reader(tmp_path: Path) -> None:
    folder, manifest = make_data(str(tmp_path))
    reader = ShardReader(folder, manifest, "train")
    numbers = np.random.default_rng(0).integers(0, 6, 400)
    with ThreadPoolExecutor(8) as pool:
        tables = pool.map(lambda number: reader.group(int(number), ["key", "image"]), numbers)
        for found in tables:
            keys = found["key"].to_pylist()
            assert found["image"].to_pylist() == [image(key) for key in keys]
    assert sum(len(reader.group(number, ["key"])) for number in range(6)) == 45


def test_images_lie_in_the_file_as_they_came(tmp_path: Path) -> None:
    make_data(str(tmp_path))
    data = (tmp_path / "train/00001.parquet").read_bytes()
    assert all(image(key) in data for key in range(24, 37))
    group = pq.ParquetFile(tmp_path / "train/00001.parquet").metadata.row_group(0)
    column = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert column["image"].compression == "UNCOMPRESSED"
    assert not column["image"].has_dictionary_page
    assert not column["image"].is_stats_set
    assert column["key"].statistics.min == 24


def test_an_unknown_split_or_column(tmp_path: Path) -> None:
    folder, manifest = make_data(str(tmp_path))
    with pytest.raises(UserError, match="split: got test; allowed: train"):
        ShardReader(folder, manifest, "test").groups
    with pytest.raises(UserError, match="split: got test"):
        check_shards(folder, manifest, "test")
    with pytest.raises(UserError, match="column: got hue; allowed: key, image, name, label, pose"):
        ShardReader(folder, manifest, "train").group(0, ["key", "hue"])


@pytest.mark.parametrize("column", ["key", "image", "name", "label", "pose.list.element"])
def test_an_altered_byte_is_found(column: str, tmp_path: Path) -> None:
    folder, manifest = make_data(str(tmp_path))
    path = tmp_path / "train/00001.parquet"
    group = pq.ParquetFile(path).metadata.row_group(1)
    place = next(group.column(i) for i in range(group.num_columns) if group.column(i).path_in_schema == column)
    data = bytearray(path.read_bytes())
    data[place.data_page_offset + place.total_compressed_size - 2] ^= 1
    path.write_bytes(data)
    check_shards(folder, manifest, "train")
    reader = ShardReader(folder, manifest, "train")
    reader.group(3, ["key", "image", "name", "label", "pose"])
    with pytest.raises(UserError, match=r"00001\.parquet: got an altered shard .*CRC"):
        reader.group(4, ["key", "image", "name", "label", "pose"])


def test_a_shard_of_another_import_is_refused(tmp_path: Path) -> None:
    folder, manifest = make_data(str(tmp_path))
    folder.write("train/00000.parquet", folder.read("train/00001.parquet"))
    with pytest.raises(UserError, match="row groups differ from the manifest"):
        ShardReader(folder, manifest, "train").group(0, ["key"])


def test_a_missing_shard(any_uri: str) -> None:
    folder, manifest = make_data(any_uri)
    folder.remove("train/00002.parquet")
    with pytest.raises(UserError, match=r"00002\.parquet: got a missing shard"):
        check_shards(folder, manifest, "train")
    with pytest.raises(UserError, match=r"00002\.parquet: got a missing shard"):
        ShardReader(folder, manifest, "train").group(5, ["key"])


def test_a_truncated_shard(any_uri: str) -> None:
    folder, manifest = make_data(any_uri)
    data = folder.read("train/00001.parquet")
    folder.write("train/00001.parquet", data[: len(data) // 2])
    with pytest.raises(UserError, match=rf"got a shard of {len(data) // 2} bytes; allowed: {len(data)} bytes"):
        check_shards(folder, manifest, "train")
    with pytest.raises(UserError, match=r"00001\.parquet: got an altered shard"):
        ShardReader(folder, manifest, "train").group(3, ["key"])


def test_a_folder_without_a_manifest(any_uri: str) -> None:
    with pytest.raises(UserError, match=r"got a folder without manifest\.json") as caught:
        read_manifest(open_folder(any_uri).child("nothing"))
    assert "run prepare_data" in str(caught.value)


def test_another_shard_in_the_place_of_one_is_seen(any_uri: str) -> None:
    """Sound, of the same rows, groups, sizes and images; one label is another."""
    folder, manifest = make_data(any_uri)
    path = manifest.split("train").shards[1].path
    tables = [table(range(24, 32)), table(range(32, 37))]
    place = tables[1].schema.get_field_index("label")
    tables[1] = tables[1].set_column(place, "label", pa.array([0, 0, 1, 2, 0], pa.int32()))
    other = write_shard(folder, path, tables, shard_schema(COLUMNS))
    assert other is not None and other.groups == manifest.split("train").shards[1].groups
    reader = ShardReader(folder, manifest, "train")
    assert len(reader.group(0, ["image"])) == 8, "the others are read"
    with pytest.raises(UserError, match=r"00001.parquet: got an altered shard \(content differs from the manifest\)"):
        reader.group(4, ["label"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": 1}, "got version 1; allowed: version 2"),
        ({"version": None}, "got version None"),
        ({"splits": {"train": {"rows": "many", "shards": []}}}, "an invalid field splits.train.rows"),
        ({"extra": 1}, "an invalid field extra"),
    ],
)
def test_a_manifest_of_another_kind(change: dict, says: str, tmp_path: Path) -> None:
    folder, _ = make_data(str(tmp_path))
    folder.write_json("manifest.json", {**folder.read_json("manifest.json"), **change})
    with pytest.raises(UserError, match=says):
        read_manifest(folder)


def test_a_manifest_that_is_not_one(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    for text, says in ((b"{", "not JSON"), (b"[]", "version None"), (b"\xff", "not JSON")):
        folder.write("manifest.json", text)
        with pytest.raises(UserError, match=says):
            read_manifest(folder)


def test_the_cache_is_bounded_and_keeps_what_was_used_last() -> None:
    made: list[int] = []
    cache: _Cache[int] = _Cache(100, lambda size: size)

    def get(size: int) -> int:
        return cache.get((size,), lambda: made.append(size) or size)

    assert [get(size) for size in (40, 50, 40, 30, 40, 50)] == [40, 50, 40, 30, 40, 50]
    # 30 displaced 50, the one used longest ago; 50 then displaced 30 and was made again.
    assert made == [40, 50, 30, 50]
    assert get(500) == 500
    assert get(40) == 40
    assert made == [40, 50, 30, 50, 500, 40], "a value over the limit pushes the others out"
    assert [get(size) for size in (60, 40)] == [60, 40] and made[6:] == [60], "as much as the limit stays"
