"""3D Shapes' HDF5 file: values become indices, splits, images of any chunks; nothing outside the file is read."""

import io
from pathlib import Path

import h5py
import numpy as np
import pytest

from soda_dist.data.source import Source
from soda_dist.data.sources import shapes3d as source_module
from soda_dist.data.storage.folder import open_folder
from soda_dist.errors import UserError
from tests.data.written import shapes3d
from tests.data.written.importing import decoded, index_of, opened, rows_of

SPLITS = {"train": 38, "val": 5, "test": 5}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer values of the factors."""
    monkeypatch.setattr(source_module, "SIZES", {name: len(values) for name, values in shapes3d.VALUES.items()})


def check(source: Source) -> None:
    seen = []
    for split, count in SPLITS.items():
        rows = rows_of(source, split)
        assert len(rows) == count
        for row in rows:
            number = int(row.name.removeprefix("3dshapes.h5#"))
            seen.append(number)
            assert np.array_equal(decoded(row.image), shapes3d.image(number))
            digits = [number // 16, number // 8 % 2, 0, number // 4 % 2, number // 2 % 2, number % 2]
            assert [*row.columns.values()] == digits
            assert [*row.columns] == [*shapes3d.VALUES]
    assert sorted(seen) == [*range(48)]


def test_every_image_once_with_its_factors(any_uri: str) -> None:
    shapes3d.write(open_folder(any_uri))
    check(opened("shapes3d", any_uri))
    check(opened("shapes3d", f"{any_uri}/3dshapes.h5"))


def test_values_are_names(tmp_path: Path) -> None:
    shapes3d.write(open_folder(str(tmp_path)))
    contents = opened("shapes3d", str(tmp_path)).contents
    assert {name: label.names for name, label in contents.labels.items()} == {
        "floor_hue": ("0", "0.45", "0.9"),
        "wall_hue": ("0.1", "0.3"),
        "object_hue": ("0.5",),
        "scale": ("0.75", "0.8214"),
        "shape": ("0", "1"),
        "orientation": ("-30", "-25.71"),
    }
    assert contents.shuffled
    assert contents.main_label == "shape"


@pytest.mark.parametrize("options", [{}, {"chunks": (1, 8, 8, 3)}, {"chunks": (48, 2, 2, 1)}, {"chunks": (7, 8, 8, 3)}])
def test_other_chunks(options: dict[str, object], tmp_path: Path) -> None:
    open_folder(str(tmp_path)).write("3dshapes.h5", shapes3d.file(**options))
    check(opened("shapes3d", str(tmp_path)))


def test_values_that_differ_in_their_last_bits_are_one(tmp_path: Path) -> None:
    labels = shapes3d.LABELS.copy()
    labels[::3] *= 1 + 1e-15
    open_folder(str(tmp_path)).write("3dshapes.h5", shapes3d.file(labels))
    check(opened("shapes3d", str(tmp_path)))


def test_rows_in_any_order_read_each_block_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes3d.write(open_folder(str(tmp_path)))
    source = opened("shapes3d", str(tmp_path))
    index = index_of(source, "train")
    reads, get = [], h5py.Dataset.__getitem__
    monkeypatch.setattr(h5py.Dataset, "__getitem__", lambda data, what: reads.append(what) or get(data, what))
    order = [37, 0, 20, 1, 1, 36, 19, 0]
    rows = rows_of(source, "train", order)
    for row, place in zip(rows, order, strict=True):
        assert np.array_equal(decoded(row.image), shapes3d.image(index["row"][place].as_py()))
    blocks = [what for what in reads if what != slice(None)]
    assert sorted(what.start for what in blocks) == [0, 20, 40]


def test_blocks_stay_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "BYTES_READ", 5 * 8 * 8 * 3)
    shapes3d.write(open_folder(str(tmp_path)))
    check(opened("shapes3d", str(tmp_path)))


def h5(**data: object) -> bytes:
    sink = io.BytesIO()
    with h5py.File(sink, "w") as file:
        for name, value in data.items():
            file[name] = value
    return sink.getvalue()


def claimed(count: int, side: int = 8, chunk: int = 3 * 2**10) -> bytes:
    """A file that says that it holds so much, and holds nothing of it."""
    sink = io.BytesIO()
    with h5py.File(sink, "w") as file:
        images, most = (48, side, 1, 3), (None, None, 1, 3)
        file.create_dataset("images", images, np.uint8, chunks=(chunk // 3, 1, 1, 3), maxshape=most)
        labels = file.create_dataset("labels", (count, 6), np.float64, chunks=(8, 6))
        if count == len(shapes3d.LABELS):
            labels[:] = shapes3d.LABELS
    return sink.getvalue()


GOOD = shapes3d.file(chunks=(20, 4, 4, 1), compression="gzip")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (GOOD[:-500], "not valid HDF5"),
        (GOOD[:300], "not valid HDF5"),
        (b"", "not valid HDF5"),
        (b"not HDF5" * 100, "not valid HDF5"),
        (h5(images=shapes3d.images()), "no labels stored in it"),
        (h5(labels=shapes3d.LABELS), "no images stored in it"),
        (h5(images=h5py.ExternalLink("/etc/passwd", "/a"), labels=shapes3d.LABELS), "no images stored in it"),
        (h5(images=h5py.SoftLink("/labels"), labels=shapes3d.LABELS), "no images stored in it"),
        (h5(images=shapes3d.images(), labels=shapes3d.LABELS[:, :5]), r"labels float64 \[48, 5\]; allowed: numbers"),
        (
            h5(images=shapes3d.images()[1:], labels=shapes3d.LABELS),
            r"images uint8 \[47, 8, 8, 3\]; allowed: uint8 \[48,",
        ),
        (h5(images=shapes3d.images(), labels=np.full((48, 6), np.nan)), "labels out of range"),
        (h5(images=shapes3d.images(), labels=np.full((48, 6), 1e300)), "labels out of range"),
        (claimed(2**40), r"6,597,069,766,656 labels; allowed: at most 16,777,216"),
        (h5(images=shapes3d.images()[:, :0], labels=shapes3d.LABELS), r"images uint8 \[48, 0, 8, 3\]"),
        (claimed(48, side=2**17), r"images uint8 \[48, 131072, 1, 3\]"),
        (claimed(48, chunk=2**31 + 1), r"images in chunks of 2,147,483,649 bytes"),
        (GOOD.replace(b"HEAP", b"HEAR"), "not valid HDF5"),
        (GOOD.replace(b"SNOD", b"SNOB"), "not valid HDF5"),
        (h5(images=shapes3d.images() / 255, labels=shapes3d.LABELS), "images float64"),
        (h5(images=shapes3d.images(), labels=np.round(shapes3d.LABELS)), "2 values of floor_hue; allowed: 3"),
        (h5(images=shapes3d.images()[:47], labels=shapes3d.LABELS[:47]), "47 images; allowed: 48, all combinations"),
    ],
)
def test_what_is_not_3d_shapes(data: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "3dshapes.h5").write_bytes(data)
    with pytest.raises(UserError, match=r"3dshapes\.h5: got .*" + says):
        opened("shapes3d", str(tmp_path))


def test_values_kept_in_another_file_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(48 * 192))
    with h5py.File(tmp_path / "3dshapes.h5", "w") as file:
        external = [(str(tmp_path / "secret"), 0, h5py.h5f.UNLIMITED)]
        file.create_dataset("images", (48, 8, 8, 3), np.uint8, external=external)
        file["labels"] = shapes3d.LABELS
    with pytest.raises(UserError, match="no images stored in it"):
        opened("shapes3d", str(tmp_path))


def test_a_damaged_chunk(tmp_path: Path) -> None:
    (tmp_path / "3dshapes.h5").write_bytes(GOOD)
    source = opened("shapes3d", str(tmp_path))
    with h5py.File(tmp_path / "3dshapes.h5") as file:
        place = file["images"].id.get_chunk_info(3)
    damaged = bytearray(GOOD)
    damaged[place.byte_offset : place.byte_offset + place.size] = bytes(place.size)
    (tmp_path / "3dshapes.h5").write_bytes(damaged)
    with pytest.raises(UserError, match=r"3dshapes\.h5: got not valid HDF5"):
        rows_of(source, "train")


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    for uri in (str(tmp_path), f"{tmp_path}/none.h5"):
        with pytest.raises(UserError, match=r"got no \w+\.h5; allowed: 3dshapes\.h5"):
            opened("shapes3d", uri)
