"""The synthetic data set: factors, identities, cameras, and that everything is a function of (seed, object, view)."""

import colorsys
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from scipy.stats import chisquare

from soda_dist.data.preparation import prepare
from soda_dist.data.shards import read_manifest
from soda_dist.data.source import Row, Source, check_image
from soda_dist.data.sources import SOURCES, parse_options
from soda_dist.data.sources.synthetic import COMBINATIONS, FACTORS, HUES, SETTINGS, Options, factors, scenes
from soda_dist.data.sources.synthetic_render import FLOOR, SHADOW, SOLID, WALL, surfaces
from soda_dist.data.storage.folder import open_folder
from soda_dist.errors import UserError


def opened(*options: str) -> Source:
    return SOURCES["synthetic"].open_source("", parse_options("synthetic", options))


def rows_of(source: Source, split: str) -> list[Row]:
    index = pa.concat_tables([source.index(part) for part in source.parts() if part.split == split])
    return list(source.rows(index))


def pixels(row: Row) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(row.image)))


def test_rows_of_the_splits() -> None:
    source = opened("objects=20", "test_objects=6", "views=3", "size=24")
    train, test = rows_of(source, "train"), rows_of(source, "test")
    assert [len(train), len(test)] == [60, 18]
    assert [row.columns["object"] for row in train] == list(np.repeat(range(20), 3))
    assert [row.columns["object"] for row in test] == list(np.repeat(range(20, 26), 3))
    for row in train + test:
        assert pixels(row).shape == (24, 24, 3)
        assert check_image(row.image) is None
        assert row.problem is None
        assert {field.name for field in source.contents.columns} == set(row.columns)
    for name, label in source.contents.labels.items():
        assert {row.columns[name] for row in train} <= set(range(len(label.names)))


def test_views_of_an_object_share_its_factors_and_not_its_camera() -> None:
    rows = rows_of(opened("objects=10", "views=4", "size=16"), "train")
    for start in range(0, 40, 4):
        views = rows[start : start + 4]
        assert len({tuple(view.columns[name] for name in FACTORS) for view in views}) == 1
        assert len({view.columns["camera_to_world"].tobytes() for view in views}) == 4
        assert len({view.image for view in views}) == 4


def test_views_of_an_object_are_neighbours_and_stay_so() -> None:
    """Pairs of an object find their sources around a row: the import must not shuffle."""
    source = opened("objects=50", "test_objects=20", "views=7", "size=8")
    assert not source.contents.shuffled
    for part in source.parts():
        objects = source.index(part)["object"].to_numpy()
        starts = np.flatnonzero(np.diff(objects, prepend=objects[0] - 1))
        assert len(starts) == len(np.unique(objects)) == len(objects) // 7


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    first, again, other = (rows_of(opened("objects=30", "size=16", f"seed={seed}"), "train") for seed in (5, 5, 6))
    assert [row.image for row in first] == [row.image for row in again]
    assert not {row.image for row in first} & {row.image for row in other}


def test_a_row_does_not_depend_on_the_rows_around_it() -> None:
    source = opened("objects=40", "size=16")
    index = source.index(source.parts()[0])
    all_rows = rows_of(source, "train")
    order = [79, 3, 3, 40]
    for row, expected in zip(source.rows(index.take(order)), [all_rows[i] for i in order], strict=True):
        assert row.image == expected.image
        assert row.columns["object"] == expected.columns["object"]
        assert np.array_equal(row.columns["camera_to_world"], expected.columns["camera_to_world"])


def test_more_objects_leave_the_first_ones_as_they_are() -> None:
    few, many = (rows_of(opened(f"objects={n}", "size=16"), "train") for n in (8, 20))
    assert [row.image for row in few] == [row.image for row in many[:16]]


def test_no_two_objects_share_a_combination() -> None:
    values = factors(0, np.arange(COMBINATIONS))
    combinations = np.ravel_multi_index(list(values.values()), [len(names) for names in FACTORS.values()])
    assert COMBINATIONS == 480_000
    assert np.array_equal(np.sort(combinations), np.arange(COMBINATIONS))


def test_factors_are_uniform_and_independent() -> None:
    values = factors(3, np.arange(6000))
    names = list(values)
    for name in names:
        counts = np.bincount(values[name], minlength=len(FACTORS[name]))
        assert chisquare(counts).pvalue > 1e-4, name
    for a in range(len(names)):
        for b in range(a):
            joint = values[names[a]] * len(FACTORS[names[b]]) + values[names[b]]
            counts = np.bincount(joint, minlength=len(FACTORS[names[a]]) * len(FACTORS[names[b]]))
            assert chisquare(counts).pvalue > 1e-4, (names[a], names[b])


def test_cameras_are_rotations_that_stand_upright_and_see_the_solid() -> None:
    objects = np.arange(500)
    view = scenes(Options(size=64), objects, objects % 2)
    rotation, position = view.camera_to_world[:, :3, :3], view.camera_to_world[:, :3, 3]
    assert np.allclose(rotation.transpose(0, 2, 1) @ rotation, np.eye(3), atol=1e-5)
    assert np.allclose(np.linalg.det(rotation), 1, atol=1e-5)
    assert (view.camera_to_world[:, 3] == [0, 0, 0, 1]).all()
    assert np.allclose(rotation[:, 2, 0], 0, atol=1e-6), "the horizon is level"
    assert (rotation[:, 2, 1] < 0).all(), "y points down"
    assert (position[:, 2] > 1).all()
    found = surfaces(view, 64)
    assert ((found >= SOLID).sum(axis=(1, 2)) > 60).all()
    border = np.ones((64, 64), bool)
    border[1:-1, 1:-1] = False
    assert (found[:, border] < SOLID).all(), "the whole solid is in the picture"


def test_the_studio_has_larger_solids_off_the_middle_before_pale_walls() -> None:
    objects, middles, areas, colours = np.arange(400), {}, {}, {}
    for setting in SETTINGS:
        view = scenes(Options(size=32, setting=setting), objects, 0 * objects)
        solid = surfaces(view, 32) >= SOLID
        areas[setting] = solid.sum(axis=(1, 2))
        down, across = np.mgrid[:32, :32]
        middles[setting] = np.stack([(solid * at).sum(axis=(1, 2)) for at in (down, across)]) / areas[setting]
        colours[setting] = view.palette
    assert areas["studio"].mean() > 1.4 * areas["room"].mean()
    assert (middles["studio"].std(axis=1) > 1.4 * middles["room"].std(axis=1)).all(), "down and across"
    assert areas["studio"].min() > 40, "none is out of the picture"
    spread = {setting: np.ptp(each, axis=2).mean(axis=0) for setting, each in colours.items()}
    np.testing.assert_allclose(spread["studio"] / spread["room"], [0.25, 0.25, 1], rtol=1e-5)


def test_settings_share_factors_and_name_their_own_sizes() -> None:
    room, studio = (opened("objects=40", "views=1", "size=8", f"setting={name}") for name in SETTINGS)
    for one, other in zip(rows_of(room, "train"), rows_of(studio, "train"), strict=True):
        assert [one.columns[name] for name in FACTORS] == [other.columns[name] for name in FACTORS]
    assert room.contents.labels["size"].names == FACTORS["size"]
    assert studio.contents.labels["size"].names[0] == "0.80"


def test_an_import_before_settings_is_the_same_import(tmp_path: Path) -> None:
    options = ["objects=1", "test_objects=0", "views=1", "size=8"]
    made = [
        read_manifest(open_folder(prepare("synthetic", None, str(tmp_path / name), [*options, f"setting={name}"])))
        for name in SETTINGS
    ]
    assert made[0].fingerprint == "84f349f85f8304cee2adc6a2c029e12801598d03d75b330397c8d8b042143cd8"
    assert made[1].fingerprint != made[0].fingerprint


def hue_of(colours: np.ndarray) -> int:
    red, green, blue = np.median(colours, axis=0) / 255
    return round(colorsys.rgb_to_hsv(red, green, blue)[0] * len(HUES)) % len(HUES)


def test_hues_can_be_read_off_the_pixels() -> None:
    source = opened("objects=80", "views=1", "size=48")
    rows = rows_of(source, "train")
    objects = np.arange(80)
    found = surfaces(scenes(Options(objects=80, views=1, size=48), objects, 0 * objects), 48)
    for row, surface in zip(rows, found, strict=True):
        for name, kind in (("wall_hue", WALL), ("floor_hue", FLOOR), ("object_hue", SOLID)):
            assert hue_of(pixels(row)[surface == kind]) == row.columns[name], (row.name, name)


def test_every_factor_changes_the_picture() -> None:
    view = scenes(Options(size=32), np.zeros(2, np.int64), np.zeros(2, np.int64))
    assert 0 < SHADOW < 1
    for shape in range(4):
        images = []
        for yaw in np.radians([-42, -36]):
            changed = {**view.__dict__, "shape": np.full(2, shape), "yaw": np.full(2, yaw, np.float32)}
            images.append(surfaces(type(view)(**changed), 32)[0])
        assert not np.array_equal(*images), "orientation is visible on every shape"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["objects=0"], "objects: got 0"),
        (["objects=480000"], "objects: got 600000 in all splits; allowed: up to 480000"),
        (["size=4"], "size: got 4"),
        (["views=two"], "views: got 'two'"),
        (["object=5"], "object: got an unknown key.*did you mean objects?"),
    ],
)
def test_wrong_options(options: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        parse_options("synthetic", options)


def test_a_source_is_refused() -> None:
    with pytest.raises(UserError, match="--source: got /data; allowed: nothing for synthetic"):
        SOURCES["synthetic"].open_source("/data", parse_options("synthetic", []))


def test_no_test_split_if_none_is_wanted() -> None:
    assert {part.split for part in opened("objects=4", "test_objects=0").parts()} == {"train"}
