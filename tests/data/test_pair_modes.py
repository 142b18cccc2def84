"""`read_pairs` of every kind of view from real shards: which rows are seen, whatever the batch, and what is refused."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare

from soda_dist.config.sections import Augmentation, Data
from soda_dist.data.order import Order
from soda_dist.data.pairs import Pairs, check_data, read_pairs
from soda_dist.data.shards import Label, ShardReader
from soda_dist.data.storage.folder import open_folder
from soda_dist.data.views.poses import Cameras, cameras
from soda_dist.errors import UserError
from tests.data.objects import LABELS, OBJECTS, ROWS, Counting, camera, flat, keys_of, pictured, write_objects
from tests.learn.scenes import reader_of, write_scenes

HOW = Augmentation(randaugment_rate=0.4, flip=False)
MODES: dict[str, dict[str, Any]] = {
    "augmented": {"sources": (1, 3), "pose": "pixels"},
    "one augmented source": {},
    "same": {"views": "same", "pose": "pixels"},
    "same from cameras": {"views": "same", "pose": "cameras"},
    "object": {"views": "object", "sources": (1, 4), "pose": "cameras"},
    "object as it is": {"views": "object", "sources": (2, 2), "pose": "cameras", "augment": "none"},
    "class": {"views": "class", "sources": (1, 2), "augment": "source"},
}
ARRAYS = ("source", "present", "target", "source_pose", "target_pose", "key", "ok", "index", "label")


def data_of(**fields: Any) -> Data:
    return Data(**{"source_size": 24, "target_size": 16, "augmentation": HOW, **fields})


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    """Images with something to see, of which two are broken."""
    return write_objects(str(tmp_path_factory.mktemp("pictured")), pictured, broken=(7, 50))


@pytest.fixture(scope="module")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    """Images that say which row they are."""
    return write_objects(str(tmp_path_factory.mktemp("flat")), flat, broken=(7, 50))


def order_of(reader: ShardReader, batch: int = 12, mix: int = 3) -> Order:
    return Order(reader.groups, 2, batch, mix)


def read(reader: Any, data: Data, start: int, stop: int, order: Order | None = None) -> Pairs:
    return read_pairs(reader, order or order_of(reader), start, stop, seed=2, data=data)


@pytest.mark.parametrize("mode", MODES)
def test_any_cut_of_a_stretch_gives_the_same_pairs(mode: str, seen: ShardReader) -> None:
    data = data_of(**MODES[mode])
    whole = read(seen, data, 30, 190)
    for edges in ([30, 31, 60, 61, 62, 150, 190], [30, 110, 190], [30, *range(33, 190, 13), 190]):
        parts = [read(seen, data, start, stop) for start, stop in pairwise(edges)]
        for name in ARRAYS:
            assert np.array_equal(np.concatenate([getattr(p, name) for p in parts]), getattr(whole, name)), name
        assert [n for p in parts for n in p.name] == whole.name


@pytest.mark.parametrize("mode", MODES)
def test_a_pair_is_a_function_of_seed_epoch_and_key_alone(mode: str, seen: ShardReader) -> None:
    """Two orders of the same rows (other batches, other windows) give each row the same pair in the same epoch."""
    data = data_of(**MODES[mode])
    for epoch in range(2):
        stretch = epoch * ROWS, (epoch + 1) * ROWS
        one, two = (read(seen, data, *stretch, order_of(seen, *how)) for how in ((12, 3), (7, 5)))
        assert not np.array_equal(one.key, two.key)
        assert sorted(one.key) == sorted(two.key) == list(range(ROWS))
        first, second = np.argsort(one.key), np.argsort(two.key)
        for name in set(ARRAYS) - {"index"}:
            assert np.array_equal(getattr(one, name)[first], getattr(two, name)[second]), name
        assert [one.name[i] for i in first] == [two.name[i] for i in second]


def test_another_seed_or_epoch_gives_other_pairs(seen: ShardReader) -> None:
    for mode in ("augmented", "same", "object", "class"):
        data, order = data_of(**MODES[mode]), order_of(seen)
        base = read(seen, data, 0, ROWS)
        others = [read_pairs(seen, order, 0, ROWS, seed=3, data=data), read(seen, data, ROWS, 2 * ROWS)]
        for other in others:
            a, b = base.source[np.argsort(base.key), 0], other.source[np.argsort(other.key), 0]
            assert (a != b).reshape(ROWS, -1).any(1).mean() > 0.5, mode


@pytest.mark.parametrize(("views", "value"), [("object", OBJECTS), ("class", LABELS)])
def test_views_show_rows_of_one_object_or_class(views: str, value: np.ndarray, coloured: ShardReader) -> None:
    """Read off the views, over the borders of row groups and shards, against an index of the whole split."""
    data = data_of(views=views, sources=(1, 3), augmentation=Augmentation())
    pairs = read(coloured, data, 0, 5 * ROWS)
    alone = 0
    for i in (i for i in range(len(pairs.key)) if not pairs.name[i]):
        key = int(pairs.key[i])
        assert keys_of(pairs.target[i]) == key
        shown = keys_of(pairs.source[i][pairs.present[i]]).tolist()
        others = set(np.flatnonzero(value == value[key]).tolist()) - {key}
        assert pairs.present[i].tolist() == [slot < len(shown) for slot in range(3)]
        assert len(shown) >= 1
        assert not pairs.source[i][~pairs.present[i]].any()
        if others:
            assert set(shown) <= others
            assert len(shown) == len(set(shown)) <= len(others)
        else:
            assert shown == [key]
            alone += 1
    assert alone >= 5


def test_over_epochs_the_sources_are_even_over_the_other_views(coloured: ShardReader) -> None:
    pairs = read(coloured, data_of(views="object", augment="none"), 0, 150 * ROWS)
    for key in (24, 55):
        at = np.flatnonzero((pairs.key == key) & (np.array(pairs.name) == ""))
        counts = np.bincount(keys_of(pairs.source[at, 0]), minlength=ROWS)
        others = np.equal(OBJECTS, OBJECTS[key]) & (np.arange(ROWS) != key)
        assert not counts[~others].any()
        assert chisquare(counts[others]).pvalue > 1e-3


@pytest.mark.parametrize("views", ["object", "class"])
def test_an_unreadable_source_or_target_is_named(views: str, coloured: ShardReader) -> None:
    """Rows 7 and 50 are broken: pairs that show one of them, and no others, say which and show another row's pair."""
    data = data_of(views=views, sources=(2, 2), augmentation=Augmentation())
    epochs = 30
    pairs = read(coloured, data, 0, epochs * ROWS)
    whole = read(write_whole(coloured), data, 0, epochs * ROWS)
    shown = np.where(whole.present, keys_of(whole.source), -1)
    roles = {"target": 0, "source": 0}
    for i in range(epochs * ROWS):
        bad = {7, 50} & {*shown[i].tolist(), int(whole.key[i])}
        assert pairs.ok[i]
        assert pairs.name[i] in ({f"row {key}" for key in bad} or {""})
        assert bool(pairs.reason[i]) == bool(bad)
        seen = {int(keys_of(pairs.target[i])), *keys_of(pairs.source[i][pairs.present[i]]).tolist()}
        assert not seen & {7, 50}
        value = {"object": OBJECTS, "class": LABELS}[views]
        assert len({int(value[key]) for key in seen}) == 1
        assert bad or seen == {int(whole.key[i]), *shown[i][whole.present[i]].tolist()}
        roles["target"] += whole.key[i] in bad
        roles["source"] += bool(bad & set(shown[i].tolist()))
    assert min(roles.values()) > 20


def write_whole(reader: ShardReader) -> ShardReader:
    """The same data set without broken rows."""
    return write_objects(f"{reader.folder.uri}-whole", flat)


@pytest.mark.parametrize("augment", ["none", "both"])
def test_poses_are_the_cameras_of_the_rows_that_are_seen(augment: str, coloured: ShardReader) -> None:
    """As they are, each is its row's camera over the central square; augmented, over some crop of the same image."""
    how = Augmentation(crop_flip_rate=1.0, crop_area=(0.3, 0.8), flip=False)
    data = data_of(views="object", sources=(1, 3), pose="cameras", augment=augment, augmentation=how)
    pairs = read(coloured, data, 0, 3 * ROWS)
    checked = 0
    for i in np.flatnonzero(pairs.ok):
        views = [*pairs.source[i][pairs.present[i]], pairs.target[i]]
        poses = [*pairs.source_pose[i][pairs.present[i]], pairs.target_pose[i]]
        for view, pose in zip(views, poses, strict=True):
            key = int(keys_of(view))
            to_world, intrinsics = camera(key)
            height, width = 20 + key % 5, 24
            side = min(height, width)
            box = np.array([(height - side) // 2, (width - side) // 2, side, side])
            stored = Cameras(to_world, intrinsics)
            expected = cameras(box, np.array(False), stored)
            assert np.array_equal(pose[:12], expected[:12])
            if augment == "none":
                assert np.array_equal(pose, expected)
            else:
                # x and y of a crop: what maps the stored intrinsics to the view's has no shear and shrinks.
                crop = pose[12:].reshape(3, 3).astype(float) @ np.linalg.inv(intrinsics.astype(float))
                assert np.allclose(crop[[0, 1], [1, 0]], 0, atol=1e-5)
                assert (1 / crop[[0, 1], [0, 1]] <= np.array([width, height]) + 1e-3).all()
            checked += 1
        assert not pairs.source_pose[i][~pairs.present[i]].any()
    assert checked > 300
    assert pairs.source_pose.dtype == pairs.target_pose.dtype == np.float32


@pytest.mark.parametrize(("pose", "size"), [("none", 0), ("pixels", 4), ("cameras", 21)])
def test_shapes_and_types(pose: str, size: int, seen: ShardReader) -> None:
    data = data_of(views="same" if pose == "pixels" else "object", pose=pose, sources=(1, 1 if pose == "pixels" else 3))
    for start, stop in ((4, 9), (4, 4)):
        n, most, pairs = stop - start, data.sources[1], read(seen, data, start, stop)
        found = {name: (getattr(pairs, name).shape, getattr(pairs, name).dtype) for name in ARRAYS}
        assert found == {
            "source": ((n, most, 24, 24, 3), np.uint8),
            "present": ((n, most), np.bool_),
            "target": ((n, 16, 16, 3), np.uint8),
            "source_pose": ((n, most, size), np.float32),
            "target_pose": ((n, size), np.float32),
            "key": ((n,), np.int64),
            "ok": ((n,), np.bool_),
            "index": ((n,), np.int64),
            "label": ((n, 0), np.int64),
        }
        assert len(pairs.name) == n


@pytest.mark.parametrize("mode", MODES)
def test_images_of_a_row_group_are_fetched_once(mode: str, tmp_path: Path) -> None:
    counting = Counting(write_objects(str(tmp_path), flat))
    for start in range(0, 160, 20):
        counting.groups_asked.clear()
        read(counting, data_of(**MODES[mode]), start, start + 20)
        fetched = [group for group, columns in counting.groups_asked if "image" in columns]
        assert len(fetched) == len(set(fetched)) >= 3


def test_what_is_missing_is_one_line_before_anything_is_read(tmp_path: Path) -> None:
    whole = write_objects(str(tmp_path / "whole"), flat)
    for mode in MODES.values():
        check_data(whole, data_of(**mode))
    no_object = write_objects(str(tmp_path / "object"), flat, leave_out=["object"])
    no_camera = write_objects(str(tmp_path / "camera"), flat, leave_out=["intrinsics"])
    attribute = {"label": Label(kind="attribute", names=("no", "yes"))}
    no_class = write_objects(str(tmp_path / "class"), flat, labels=attribute)
    cases = [
        (no_object, {"views": "object"}, "data.views: got object, but column object is missing in split train"),
        (no_camera, {"pose": "cameras"}, "data.pose: got cameras, but column intrinsics is missing in split train"),
        (no_class, {"views": "class"}, "data.views: got class, but the data set has no main label"),
    ]
    for reader, fields, says in cases:
        check_data(reader, data_of(**{name: "augmented" if name == "views" else "none" for name in fields}))
        with pytest.raises(UserError) as caught:
            check_data(reader, data_of(**fields))
        assert str(caught.value).startswith(says)
        assert "\n" not in str(caught.value)


def test_a_column_of_another_type_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa

    from tests.data import objects

    texts = [pa.field("object", pa.string()) if column.name == "object" else column for column in objects.COLUMNS]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects, "COLUMNS", texts)
        patch.setattr(objects, "row", lambda *given, of=objects.row: {**of(*given), "object": "a chair"})
        reader = write_objects(str(tmp_path), flat)
    with pytest.raises(UserError, match=r"column object is of type string in split train; allowed: .* of type int64"):
        check_data(reader, data_of(views="object"))


def test_objects_with_a_single_view_each_are_no_data_for_views_of_objects(tmp_path: Path) -> None:
    write_scenes(tmp_path / "one", objects=5, test_objects=0, views=1, size=16)
    write_scenes(tmp_path / "two", objects=5, test_objects=0, views=2, size=16)
    check_data(reader_of(open_folder(str(tmp_path / "two")), "train"), data_of(views="object"))
    with pytest.raises(UserError, match="each of the first 5 rows of split train shows a different object"):
        check_data(reader_of(open_folder(str(tmp_path / "one")), "train"), data_of(views="object"))
