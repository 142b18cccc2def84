"""A prepared folder is checked against its manifest: what is sound passes, every kind of damage is named."""

from pathlib import Path

import pyarrow.parquet as pq

from soda_dist.data.preparation import check
from soda_dist.data.preparation import prepare as run_import
from soda_dist.data.shards import read_manifest, write_manifest
from soda_dist.data.storage.folder import open_folder
from soda_dist.errors import UserError
from tests.evaluation.small_run import prepare

SHARDS = {"train": [[8, 8], [8, 8, 5]], "test": [[6]]}


def checked(place: str, images: int | None = None) -> list[str]:
    said: list[str] = []
    try:
        check(place, images, say=said.append)
    except UserError as error:
        said.append(str(error))
    return said


def test_a_sound_folder_is_counted(any_uri: str) -> None:
    prepare(any_uri, SHARDS, {})
    assert checked(any_uri)[-1] == "ok: 3 shards, 37 train rows, 6 test rows, 43 images decoded"
    assert checked(any_uri, 2)[-1] == "ok: 3 shards, 37 train rows, 6 test rows, 6 images decoded"


def test_every_kind_of_damage_is_named(tmp_path: Path) -> None:
    prepare(str(tmp_path), SHARDS, {"train": {20}})
    first, second, third = (
        tmp_path / path for path in ("train/00000.parquet", "train/00001.parquet", "test/00000.parquet")
    )
    whole = first.read_bytes()
    middle = len(whole) // 2
    first.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    third.unlink()
    lines = checked(str(tmp_path))
    assert lines[-4:-1] == [
        f"{first}: content differs from the manifest",
        f"{second}: train/20.png cannot be decoded",
        f"{third}: missing",
    ]
    assert "got 3 problems in 3 shards; allowed" in lines[-1] and "\n" not in lines[-1]
    first.write_bytes(whole[:-1])
    assert f"{first}: {len(whole) - 1:,} bytes, not {len(whole):,}" in checked(str(tmp_path))


def test_the_remedy_that_the_message_names(tmp_path: Path) -> None:
    """A shard altered at the same length: removed, and imported again by the same command, all is sound."""
    options = ["objects=48", "test_objects=16", "size=16", "rows_per_group=8", "groups_per_shard=2"]
    run_import("synthetic", None, str(tmp_path), options)
    shard = tmp_path / "train/00001.parquet"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    message = checked(str(tmp_path))[-1]
    assert "got 1 problem in 8 shards; allowed" in message and "remove the shards named above" in message
    shard.unlink()
    said: list[str] = []
    run_import("synthetic", None, str(tmp_path), options, say=said.append)
    assert "reusing 7 of 8 shards of an earlier run" in said
    assert shard.read_bytes() == whole and checked(str(tmp_path))[-1].startswith("ok: 8 shards")


def test_keys_and_groups_that_the_manifest_does_not_know(tmp_path: Path) -> None:
    """A shard with a true digest, but in the place of another one."""
    manifest = prepare(str(tmp_path), {"train": [[8, 8], [8, 8]], "test": [[6]]}, {})
    one, two = manifest.splits["train"].shards
    swapped = manifest.splits["train"].model_copy(update={"shards": (two.model_copy(update={"groups": (10, 6)}), one)})
    write_manifest(
        open_folder(str(tmp_path)), manifest.model_copy(update={"splits": {**manifest.splits, "train": swapped}})
    )
    lines = checked(str(tmp_path), 1)
    assert [line.partition(": ")[2] for line in lines[-4:-1]] == [
        "row groups of (8, 8) rows, not (10, 6)",
        "keys other than 0..15",
        "keys other than 16..31",
    ]
    assert pq.read_metadata(tmp_path / one.path).num_row_groups == 2
    assert read_manifest(open_folder(str(tmp_path))).splits["train"].shards[0].path == two.path
