"""MPI3D's archives, stored and deflated: factors by the place in the array, splits, rows read where they lie."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from soda_dist.data.formats.seekable_file import SeekableFile
from soda_dist.data.sources import mpi3d as source_module
from soda_dist.data.storage.folder import Folder, open_folder
from soda_dist.errors import UserError
from tests.data.written import mpi3d
from tests.data.written.importing import decoded, index_of, opened, rows_of

SPLITS = {"train": 24, "val": 3, "test": 3}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer combinations for the variant `real`."""
    monkeypatch.setitem(source_module.FACTORS, "real", mpi3d.FACTORS)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("deflated", [False, True])
def test_every_image_once_with_its_factors(deflated: bool, source_uri: str) -> None:
    folder = open_folder(source_uri)
    if deflated:
        folder.write("mpi3d_real.npz", mpi3d.archive(images=mpi3d.images(), deflated=True))
    else:
        mpi3d.write(folder)
    for uri in (source_uri, f"{source_uri}/mpi3d_real.npz"):
        source = opened("mpi3d", uri)
        assert source.images.deflated == deflated
        seen = []
        for split, count in SPLITS.items():
            rows = rows_of(source, split)
            assert len(rows) == count
            for row in rows:
                number = int(row.name.removeprefix("mpi3d_real.npz#"))
                seen.append(number)
                assert np.array_equal(decoded(row.image), mpi3d.image(number))
                color, shape, axis = number // 10, number // 5 % 2, number % 5
                assert row.columns == {"object_color": color, "object_shape": shape, "vertical_axis": axis}
        assert sorted(seen) == [*range(30)]
    assert source.contents.shuffled
    assert source.contents.labels["object_shape"].names == ("cone", "cube")


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("deflated", [False, True])
def test_rows_come_in_the_order_of_any_index(deflated: bool, tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    folder.write("mpi3d_real.npz", mpi3d.archive(images=mpi3d.images(), deflated=deflated))
    source = opened("mpi3d", str(tmp_path), "seed=5")
    index = index_of(source, "train")
    order = [23, 0, 7, 7, 8, 9, 1, 22, 0]
    rows = rows_of(source, "train", order)
    for row, place in zip(rows, order, strict=True):
        assert np.array_equal(decoded(row.image), mpi3d.image(index["row"][place].as_py()))


@pytest.mark.usefixtures("small")
def test_a_deflated_archive_is_read_once_for_a_selection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_folder(str(tmp_path)).write("mpi3d_real.npz", mpi3d.archive(images=mpi3d.images(), deflated=True))
    source = opened("mpi3d", str(tmp_path))
    made: list[str] = []
    monkeypatch.setattr(
        source_module,
        "SeekableFile",
        lambda folder, name, **how: made.append(name) or SeekableFile(folder, name, **how),
    )
    rows_of(source, "train", [*range(23, -1, -1)])
    assert made == ["mpi3d_real.npz"]


def test_the_published_sizes() -> None:
    sizes = {kind: [len(names) for names in factors.values()] for kind, factors in source_module.FACTORS.items()}
    assert sizes["toy"] == sizes["realistic"] == sizes["real"] == [6, 6, 2, 3, 3, 40, 40]
    assert sizes["complex"] == [4, 4, 2, 3, 3, 40, 40]
    assert [np.prod(sizes[kind]) for kind in ("toy", "complex")] == [1_036_800, 460_800]


def test_a_count_that_is_not_the_variants(tmp_path: Path) -> None:
    mpi3d.write(open_folder(str(tmp_path)))
    with pytest.raises(UserError, match=r"got 30 images; allowed: 6\*6\*2\*3\*3\*40\*40 = 1,036,800 of real"):
        opened("mpi3d", str(tmp_path))


@pytest.mark.usefixtures("small")
def test_which_variant(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    data = mpi3d.archive(images=mpi3d.images())
    with pytest.raises(UserError, match=r"none of MPI3D's archives; allowed: mpi3d_toy\.npz, mpi3d_realistic"):
        opened("mpi3d", str(tmp_path))
    folder.write("arm.npz", data)
    with pytest.raises(UserError, match=r"variant: got nothing; allowed: toy, .*; set the variant of arm\.npz"):
        opened("mpi3d", f"{tmp_path}/arm.npz")
    assert len(rows_of(opened("mpi3d", f"{tmp_path}/arm.npz", "variant=real"), "train")) == 24
    with pytest.raises(UserError, match="got a missing file"):
        opened("mpi3d", f"{tmp_path}/none.npz")
    for name in ("mpi3d_real.npz", "mpi3d_toy.npz"):
        folder.write(name, data)
    with pytest.raises(UserError, match="variant: got nothing, and toy, real in"):
        opened("mpi3d", str(tmp_path))
    assert len(rows_of(opened("mpi3d", str(tmp_path), "variant=real"), "train")) == 24
    with pytest.raises(UserError, match=r"none of MPI3D's archives; allowed: real3d_complicated_shapes_ordered\.npz"):
        opened("mpi3d", str(tmp_path), "variant=complex")


def zipped(name: str, data: bytes) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr(name, data)
    return sink.getvalue()


def pickled() -> bytes:
    return mpi3d.archive(images=np.array([{"a": 1}], dtype=object))


GOOD = mpi3d.archive(images=mpi3d.images())


def header(old: bytes, new: bytes) -> bytes:
    """The archive with another text in its array's header."""
    data = zipfile.ZipFile(io.BytesIO(GOOD)).read("images.npy")
    assert old in data
    return zipped("images.npy", data.replace(old, new))


def too_early() -> bytes:
    """An archive whose member would begin before the file."""
    return GOOD[1:]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (GOOD[:-100], "not a valid .npz"),
        (b"PK\x03\x04" + b"\0" * 100, "not a valid .npz"),
        (mpi3d.archive(pictures=mpi3d.images()), r"an archive of pictures\.npy; allowed: images\.npy"),
        (zipped("../images.npy", b""), r"an archive of \.\./images\.npy; allowed: images\.npy"),
        (header(b"{'descr'", b"{\0descr'"), r"no array in images\.npy"),
        (header(b"(30, 8, 6, 3)", b"((30,8,6, 3)"), r"no array in images\.npy"),
        (too_early(), r"no valid offset of images\.npy"),
        (zipped("images.npy", b"no array"), "no array in images.npy"),
        (zipped("images.npy", GOOD[:0]), "no array in images.npy"),
        (
            mpi3d.archive(images=mpi3d.images()[..., 0]),
            r"uint8 \[30, 8, 6\]; allowed: uint8 \[images, height, width, 3\]",
        ),
        (mpi3d.archive(images=mpi3d.images()[:, :0]), r"uint8 \[30, 0, 6, 3\]"),
        (mpi3d.archive(images=np.zeros((30, 1, 2**16 + 1, 3), np.uint8)), r"uint8 \[30, 1, 65537, 3\]"),
        (mpi3d.archive(images=mpi3d.images().astype(np.float32)), r"float32 \[30, 8, 6, 3\]"),
        (mpi3d.archive(images=np.asfortranarray(mpi3d.images())), "allowed: uint8"),
        (pickled(), r"object \[1\]; allowed: uint8"),
    ],
)
@pytest.mark.usefixtures("small")
def test_what_is_not_mpi3d(data: bytes, says: str, tmp_path: Path) -> None:
    open_folder(str(tmp_path)).write("mpi3d_real.npz", data)
    with pytest.raises(UserError, match=r"mpi3d_real\.npz: got .*" + says):
        opened("mpi3d", str(tmp_path))


@pytest.mark.usefixtures("small")
def test_a_deflated_member_that_is_damaged(tmp_path: Path) -> None:
    data = bytearray(mpi3d.archive(images=mpi3d.images(), deflated=True))
    data[2000:2100] = b"\xff" * 100
    open_folder(str(tmp_path)).write("mpi3d_real.npz", bytes(data))
    source = opened("mpi3d", str(tmp_path))
    with pytest.raises(UserError, match=r"mpi3d_real\.npz: got not a valid \.npz"):
        rows_of(source, "train")


@pytest.mark.usefixtures("small")
def test_a_file_that_has_become_shorter_has_truncated_records(tmp_path: Path) -> None:
    folder: Folder = open_folder(str(tmp_path))
    mpi3d.write(folder)
    source = opened("mpi3d", str(tmp_path))
    folder.write("mpi3d_real.npz", folder.read("mpi3d_real.npz")[: source.images.start + 29 * 144 + 1])
    problems = {row.name: row.problem for split in SPLITS for row in rows_of(source, split)}
    assert [name for name, problem in problems.items() if problem] == ["mpi3d_real.npz#29"]
