"""Every published layout, made small, through an import as a cluster does it; and damaged ones, which leave nothing."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from soda_dist.data.shards import MANIFEST, check_shards, read_manifest
from soda_dist.data.sources import SOURCES
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.errors import UserError
from tests.data.written.layouts import LAYOUTS, small
from tests.data.written.mutated import mutant

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]
GROUPS = ("rows_per_group=4", "groups_per_shard=2")
ROWS = {
    "afhq": {"train": 6, "val": 4},
    "afhq zip": {"train": 6, "test": 4},
    "celebahq": {"train": 2, "val": 1, "test": 2},
    "celebahq zip": {"train": 2, "val": 1, "test": 2},
    "celebahq of stargan": {"train": 5, "val": 2},
    "cifar10": {"train": 20, "test": 4},
    "cifar10 tgz": {"train": 20, "test": 4},
    "cifar10 parquet": {"train": 7, "test": 4},
    "cifar100": {"train": 5, "test": 3},
    "cub": {"train": 3, "test": 2},
    "cub tgz": {"train": 3, "test": 2},
    "cub zip": {"train": 3, "test": 2},
    "flowers102": {"train": 2, "val": 2, "test": 4},
    "flowers102 tgz": {"train": 2, "val": 2, "test": 4},
    "folder": {"train": 6, "val": 2, "test": 1},
    "folder zip": {"train": 6, "val": 2, "test": 1},
    "folder tgz": {"train": 6, "val": 2, "test": 1},
    "gso": {"train": 9},
    "imagenet": {"train": 9, "val": 2},
    "imagenet tars": {"train": 9, "val": 4},
    "imagenet tgz": {"train": 9, "val": 4},
    "lsun": {"train": 82, "val": 8, "test": 3},
    "lsun stored zips": {"train": 82, "val": 8, "test": 3},
    "lsun deflated zip": {"train": 52, "val": 5, "test": 3},
    "mpi3d": {"train": 24, "val": 3, "test": 3},
    "mpi3d deflated": {"train": 24, "val": 3, "test": 3},
    "multiview": {"train": 4, "test": 2},
    "nmr": {"train": 72, "val": 24, "test": 72},
    "nmr zip": {"train": 72, "val": 24, "test": 72},
    "nmr tar": {"train": 72, "val": 24, "test": 72},
    "parquet": {"train": 7, "val": 2, "test": 4},
    "shapenet": {"train": 6, "test": 3},
    "shapes3d": {"train": 38, "val": 5, "test": 5},
    "shapes3d flat": {"train": 38, "val": 5, "test": 5},
    "smallnorb": {"train": 6, "test": 2},
    "smallnorb gz": {"train": 6, "test": 2},
    "webdataset": {"train": 10, "val": 3},
    "webdataset json": {"train": 10, "val": 3},
}
"""Good ones of each split, by the constants of the writers' modules."""
REJECTED = {"folder": 4}
"""By kind."""
IN_S3 = (
    "celebahq zip",
    "cub tgz",
    "imagenet tgz",
    "lsun",
    "lsun deflated zip",
    "mpi3d",
    "parquet",
    "shapes3d",
    "webdataset",
)
DAMAGED = (
    "cifar10",
    "cub",
    "flowers102",
    "folder tgz",
    "imagenet tars",
    "lsun",
    "lsun deflated zip",
    "multiview",
    "parquet",
    "shapes3d",
)
SEEDS = range(4)
"""Of mutants of each of these."""


@pytest.fixture(autouse=True)
def few_values() -> Iterator[None]:
    """Opened here, sources carry what their tasks need."""
    with small():
        yield


def imported(name: str, files: dict[str, bytes], source: Folder, data: str) -> list[str]:
    """What an import of a layout says; its files are written first."""
    from soda_dist.data.preparation.prepare import prepare

    for file, content in files.items():
        source.write(file, content)
    layout, lines = LAYOUTS[name], list[str]()
    uri = f"{source.uri}/{layout.name}".rstrip("/")
    assert prepare(layout.kind, uri, data, (*GROUPS, *layout.options), lines.append) == data
    return lines


def checked(data: str, images: int | None) -> str:
    """The last line of a check; a folder that is not sound is a `UserError`."""
    from soda_dist.data.preparation.verify import check

    lines: list[str] = []
    check(data, images, lines.append)
    return lines[-1]


def test_every_published_kind_is_imported() -> None:
    assert {LAYOUTS[name].kind for name in ROWS} == set(SOURCES) - {"synthetic"}


@pytest.mark.parametrize(("name", "place"), [*((n, "tmp_path") for n in ROWS), *((n, "s3_uri") for n in IN_S3)])
def test_a_layout_is_imported_once(name: str, place: str, request: pytest.FixtureRequest) -> None:
    uri, layout = str(request.getfixturevalue(place)), LAYOUTS[name]
    source, data = open_folder(f"{uri}/source"), f"{uri}/data"
    files = layout.packed(layout.files())
    said = imported(name, files, source, data)
    manifest = read_manifest(open_folder(data))
    rows = {split: found.rows for split, found in manifest.splits.items()}
    assert (manifest.kind, rows) == (layout.kind, ROWS[name])
    assert manifest.rejected == REJECTED.get(layout.kind, 0)
    told = ", ".join(f"{count:,} {split} rows" for split, count in rows.items())
    assert said[-1].startswith("done: ") and all(f"{count:,} {split} rows" in said[-1] for split, count in rows.items())
    assert checked(data, None).endswith(f"{told}, {sum(rows.values())} images decoded")
    assert imported(name, {}, source, data) == [f"nothing left to do: {told} are there, {manifest.rejected} rejected"]


def test_a_damaged_archive_makes_a_sound_folder_or_none(tmp_path: Path) -> None:
    sound, refused = 0, 0
    for name in DAMAGED:
        for seed in SEEDS:
            data = str(tmp_path / f"{name} {seed}/data")
            try:
                imported(name, mutant(LAYOUTS[name], seed), open_folder(str(tmp_path / f"{name} {seed}/source")), data)
            except UserError as error:
                assert not (Path(data) / MANIFEST).exists(), (name, seed)
                assert "\n" not in str(error)
                refused += 1
            else:
                manifest = read_manifest(open_folder(data))
                for split in manifest.splits:
                    check_shards(open_folder(data), manifest, split)
                # Pixels may be damaged: only headers and ends of images were looked at.
                assert checked(data, 0).startswith("sound: ")
                sound += 1
    assert sound > 5 and refused > 5
