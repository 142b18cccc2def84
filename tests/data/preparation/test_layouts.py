"""Every published layout, made small, is imported and checked; damaged ones leave a sound folder or none."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from soda_dist.data.preparation import check, prepare
from soda_dist.data.shards import MANIFEST, check_shards, read_manifest
from soda_dist.data.sources import SOURCES
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.errors import UserError
from soda_dist.parallel.pool import Pool
from tests.data.written.layouts import LAYOUTS, small
from tests.data.written.mutated import mutant
from tests.evaluation.scattered_pool import ScatteredPool
from tests.sizes import sized

pytestmark = pytest.mark.slow

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


@pytest.fixture(autouse=True)
def few_values() -> Iterator[None]:
    with small():
        yield


def imported(
    name: str, files: dict[str, bytes], source: Folder, data: str, pool: Callable[[], Pool] = ScatteredPool
) -> list[str]:
    """Import a layout, whose files are written first; returns the lines that the import shows."""
    for file, content in files.items():
        source.write(file, content)
    layout, lines = LAYOUTS[name], list[str]()
    uri = f"{source.uri}/{layout.name}".rstrip("/")
    assert prepare(layout.kind, uri, data, (*GROUPS, *layout.options), pool(), lines.append) == data
    return lines


def checked(data: str, images: int | None, pool: Callable[[], Pool] = ScatteredPool) -> str:
    """The last line of a check; a folder that is not sound is a `UserError`."""
    lines: list[str] = []
    check(data, images, pool(), lines.append)
    return lines[-1]


def import_twice(name: str, uri: str, pool: Callable[[], Pool] = ScatteredPool) -> None:
    """Import a layout into `uri`, check its shards and what was said of them, and import it again."""
    layout = LAYOUTS[name]
    source, data = open_folder(f"{uri}/source"), f"{uri}/data"
    said = imported(name, layout.packed(layout.files()), source, data, pool)
    manifest = read_manifest(open_folder(data))
    rows = {split: found.rows for split, found in manifest.splits.items()}
    assert (manifest.kind, rows) == (layout.kind, ROWS[name])
    assert manifest.rejected == REJECTED.get(layout.kind, 0)
    told = ", ".join(f"{count:,} {split} rows" for split, count in rows.items())
    assert said[-1].startswith("done: ") and all(f"{count:,} {split} rows" in said[-1] for split, count in rows.items())
    assert checked(data, None, pool).endswith(f"{told}, {sum(rows.values())} images decoded")
    again = imported(name, {}, source, data, pool)
    assert again == [f"already prepared: {told}, {manifest.rejected} rejected"]


def test_every_published_kind_is_imported() -> None:
    assert {LAYOUTS[name].kind for name in ROWS} == set(SOURCES) - {"synthetic"}


@pytest.mark.parametrize("name", ROWS)
def test_a_layout_is_imported_once(name: str, layout_uri: str) -> None:
    import_twice(name, layout_uri)


@sized("seeds", 4, long=40)
def test_a_damaged_archive_makes_a_sound_folder_or_none(seeds: int, tmp_path: Path) -> None:
    sound, refused = 0, 0
    for name in DAMAGED:
        for seed in range(seeds):
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
                assert checked(data, 0).startswith("ok: ")
                sound += 1
    assert sound > 5 and refused > 5
