"""Where a view lies: by hand, against OpenCV's camera, and by what can be seen in the view itself."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest

from soda_dist.config.sections import Augmentation, Data
from soda_dist.data.sources.synthetic import Options, Synthetic, scenes
from soda_dist.data.sources.synthetic_render import ROOM, SOLID, surfaces
from soda_dist.data.views.pair_views import center_poses, center_views, view_pairs
from soda_dist.data.views.poses import CAMERA_COLUMNS, POSE_SIZES, Cameras, cameras, frames, read_cameras, view_angles
from soda_dist.errors import UserError
from tests.data.objects import camera, flat, write_objects

SIZES = ((200, 200), (120, 250), (250, 90), (720, 600), (30, 240))
WIDE = Augmentation(crop_flip_rate=0.9, crop_area=(0.2, 1.0))


def test_frames_by_hand() -> None:
    boxes, sizes = np.array([[10, 20, 30, 40], [0, 0, 100, 200], [25.5, 150, 50, 50]]), np.array([[100, 200]] * 3)
    expected = [[-0.8, -0.8, -0.2, -0.4], [-1, -1, 1, 1], [-0.49, 0.5, 0.51, 1]]
    assert np.allclose(frames(boxes, np.zeros(3, bool), sizes), expected, atol=1e-6)
    mirrored = [[-0.8, -0.4, -0.2, -0.8], [-1, 1, 1, -1], [-0.49, 1, 0.51, 0.5]]
    assert np.allclose(frames(boxes, np.ones(3, bool), sizes), mirrored, atol=1e-6)
    assert frames(boxes, np.ones(3, bool), sizes).dtype == np.float32


def ramp(height: int, width: int, kind: str) -> bytes:
    """An image that tells its own coordinates: red is x and green is y, 0..255 over the width and the height."""
    x, y = 255 * (np.arange(width) + 0.5) / width, 255 * (np.arange(height) + 0.5) / height
    image = np.zeros((height, width, 3))
    image[..., 2], image[..., 1] = x, y[:, None]
    how = [cv2.IMWRITE_JPEG_QUALITY, 98, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111] if kind == ".jpg" else []
    return cv2.imencode(kind, np.rint(image).astype(np.uint8), how)[1].tobytes()


def check_frame(view: np.ndarray, frame: np.ndarray, allowed: float) -> None:
    """A view of a `ramp` shows the coordinates that its frame says, in levels; the low pass bends the border."""
    side = len(view)
    u = (np.arange(side) + 0.5) / side
    y0, x0, y1, x1 = frame.astype(float)
    x, y = 127.5 * (1 + x0 + (x1 - x0) * u), 127.5 * (1 + y0 + (y1 - y0) * u)
    inner = slice(2, -2)
    assert np.abs(view[inner, inner, 0] - x[None, inner]).max() < allowed
    assert np.abs(view[inner, inner, 1] - y[inner, None]).max() < allowed


def own(count: int, sources: int = 1) -> np.ndarray:
    return np.repeat(np.arange(count)[:, None], sources + 1, axis=1)


@pytest.mark.parametrize("kind", [".png", ".jpg"])
def test_a_frame_says_what_the_view_shows(kind: str) -> None:
    """Mirrored or not, cropped or not; JPEG of 720 px is decoded at a fraction of its size."""
    images = [ramp(*SIZES[i % 5], kind) for i in range(40)]
    data = Data(source_size=48, target_size=32, pose="pixels", sources=(2, 2), augmentation=WIDE)
    made = view_pairs(images, own(40, 2), np.arange(40), np.zeros(40, int), seed=1, data=data)
    mirrored = 0
    for i in range(40):
        # Codes of 8 bits, and in JPEG a rounding of its own; the widest pixel is a 30th of the height.
        for view, frame in zip(
            [*made.source[i], made.target[i]], [*made.source_pose[i], made.target_pose[i]], strict=True
        ):
            check_frame(view, frame, 3.0)
            mirrored += frame[1] > frame[3]
    assert 30 < mirrored < 80


@pytest.mark.parametrize("resize", [1.0, 8 / 7, 1.5])
def test_frames_of_center_views(resize: float) -> None:
    images = [ramp(height, width, ".png") for height, width in SIZES]
    views, ok = center_views(images, size=40, resize=resize)
    table = pa.table({"image": [*images, b"broken"]})
    found = center_poses(table, size=40, resize=resize, pose="pixels")
    assert ok.all()
    assert found.shape == (6, 4)
    for view, frame in zip(views, found, strict=False):
        check_frame(view, frame, 2.0)
    share = (found[0, 2] - found[0, 0]) / 2
    assert share == pytest.approx(40 / round(40 * resize), abs=1e-6), "of a square image"
    assert (found[5] == 0).all()


def project(pose: np.ndarray, points: np.ndarray) -> np.ndarray:
    """World points [m, 3] to (u, v) [m, 2] of a pose as `Pairs` holds it."""
    to_world = np.vstack([pose[:12].reshape(3, 4).astype(float), [0, 0, 0, 1]])
    seen = np.linalg.inv(to_world) @ np.column_stack([points, np.ones(len(points))]).T
    image = pose[12:].reshape(3, 3).astype(float) @ seen[:3]
    return (image[:2] / image[2]).T


def in_front(to_world: np.ndarray) -> np.ndarray:
    """World points [20, 3] before a camera."""
    local = np.random.default_rng(3).uniform((-1, -1, 2), (1, 1, 6), (20, 3))
    return local @ to_world[:3, :3].T + to_world[:3, 3]


def stored_cameras() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    yield from (camera(key) for key in range(8))


@pytest.mark.parametrize("flipped", [False, True])
def test_cameras_are_opencvs_projection_and_then_the_crop(flipped: bool) -> None:
    rng = np.random.default_rng(0)
    for to_world, intrinsics in stored_cameras():
        plain = intrinsics.astype(float) * [[1, 0, 1], [0, 1, 1], [0, 0, 1]]  # OpenCV knows no skew
        top, left, height, width = rng.uniform(2, 20, 4)
        points = in_front(to_world)
        extrinsics = np.linalg.inv(to_world.astype(float))
        pixels = cv2.projectPoints(points, cv2.Rodrigues(extrinsics[:3, :3])[0], extrinsics[:3, 3], plain, None)[0][
            :, 0
        ]
        expected = (pixels - (left, top)) / (width, height)
        if flipped:
            expected[:, 0] = 1 - expected[:, 0]
        box = np.array([[top, left, height, width]])
        pose = cameras(box, np.array([flipped]), Cameras(to_world[None], plain[None]))
        assert pose.dtype == np.float32
        assert np.abs(project(pose[0], points) - expected).max() < 1e-4


def test_skew_stays() -> None:
    for to_world, intrinsics in stored_cameras():
        points = in_front(to_world)
        whole = cameras(np.array([[0, 0, 1, 1]]), np.array([False]), Cameras(to_world[None], intrinsics[None]))[0]
        part = cameras(np.array([[3, 5, 10, 20]]), np.array([False]), Cameras(to_world[None], intrinsics[None]))[0]
        assert np.array_equal(whole[12:].reshape(3, 3), intrinsics)
        assert intrinsics[0, 1] != 0
        assert np.abs(project(part, points) - (project(whole, points) - (5, 3)) / (20, 10)).max() < 1e-4


def seams(pose: np.ndarray, solid: np.ndarray, view: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Colours just above and below the points where the floor meets the back wall, those beside the solid left out."""
    side, found = len(view), []
    edge = np.column_stack([np.linspace(-ROOM + 0.3, ROOM - 0.3, 60), np.full(60, ROOM), np.zeros(60)])
    for u, v in project(pose, edge):
        x, y = int(u * side), v * side
        above, below = int(np.floor(y - 2)), int(np.floor(y + 2))
        if 0 <= x < side and above >= 0 and below < side and not solid[above : below + 1, x].any():
            found.append((view[above, x].astype(int), view[below, x].astype(int)))
    return found


def test_the_camera_of_a_cropped_view_puts_the_room_where_it_is_seen() -> None:
    """The seam of floor and wall, at either side of which the rendered colours are those of floor and wall."""
    source = Synthetic(Options(objects=48, views=1, size=96))
    rows = list(source.rows(source.index(source.parts()[0])))
    seen = scenes(source.options, np.arange(48), np.zeros(48, int))
    stored = Cameras(
        np.stack([row.columns["camera_to_world"].reshape(4, 4) for row in rows]),
        np.stack([row.columns["intrinsics"].reshape(3, 3) for row in rows]),
    )
    how = Augmentation(crop_flip_rate=1.0, crop_area=(0.35, 0.6), flip=False)
    data = Data(source_size=128, target_size=64, views="same", pose="cameras", augmentation=how)
    images = [row.image for row in rows]
    made = view_pairs(images, own(48), np.arange(48), np.zeros(48, int), seed=0, data=data, stored=stored)
    masks = [255 * (mask >= SOLID).astype(np.uint8) for mask in surfaces(seen, 96)]
    masks = [cv2.imencode(".png", cv2.dilate(mask, np.ones((5, 5))))[1].tobytes() for mask in masks]
    solids = view_pairs(masks, own(48), np.arange(48), np.zeros(48, int), seed=0, data=data, stored=stored).source
    checked = right = 0
    for i in range(48):
        hue = {name: rows[i].columns[name] for name in ("wall_hue", "floor_hue")}
        if (hue["wall_hue"] - hue["floor_hue"]) % 10 in (0, 1, 9):
            continue
        for above, below in seams(made.source_pose[i, 0], solids[i, 0, ..., 0] > 0, made.source[i, 0]):
            checked += 1
            right += hue_of(above) == hue["wall_hue"] and hue_of(below) == hue["floor_hue"]
    assert checked > 300
    assert right > 0.97 * checked
    assert np.array_equal(made.source_pose[:, 0], made.target_pose), "one crop, whatever the size"


def hue_of(colour: np.ndarray) -> int:
    return round(cv2.cvtColor(colour.astype(np.float32)[None, None] / 255, cv2.COLOR_RGB2HSV)[0, 0, 0] / 36) % 10


@pytest.mark.parametrize(("size", "resize"), [(24, 1.0), (28, 8 / 7)])
def test_cameras_of_center_views(size: int, resize: float) -> None:
    """The intrinsics that the same crop has as a frame, exactly."""
    keys = [0, 1, 2, 3]
    table = pa.table(
        {
            "image": [ramp(*shape, ".png") for shape in SIZES[:4]],
            "camera_to_world": pa.array([camera(k)[0].reshape(-1) for k in keys], CAMERA_COLUMNS["camera_to_world"]),
            "intrinsics": pa.array([camera(k)[1].reshape(-1) for k in keys], CAMERA_COLUMNS["intrinsics"]),
        }
    )
    found = center_poses(table, size=size, resize=resize, pose="cameras")
    places = center_poses(table, size=size, resize=resize, pose="pixels")
    assert found.shape == (4, 21)
    for key, (height, width) in zip(keys, SIZES, strict=False):
        to_world, intrinsics = camera(key)
        assert np.array_equal(found[key, :12].reshape(3, 4), to_world[:3])
        y0, x0, y1, x1 = (places[key].astype(float) + 1) / 2 * (height, width, height, width)
        to_view = np.array([[1 / (x1 - x0), 0, -x0 / (x1 - x0)], [0, 1 / (y1 - y0), -y0 / (y1 - y0)], [0, 0, 1]])
        assert np.allclose(found[key, 12:].reshape(3, 3), to_view @ intrinsics, atol=1e-4)


def test_cameras_are_read_from_any_slice_of_a_table(tmp_path: Path) -> None:
    table = write_objects(str(tmp_path), flat).group(3, [*CAMERA_COLUMNS])
    both = pa.concat_tables([table.slice(2, 3), table.take([7, 0])])
    found = read_cameras(both)
    for row, key in enumerate([23, 24, 25, 28, 21]):
        assert np.array_equal(found.to_world[row], camera(key)[0])
        assert np.array_equal(found.intrinsics[row], camera(key)[1])
    assert read_cameras(table.slice(0, 0)).to_world.shape == (0, 4, 4)
    holes = pa.table({name: pa.array([None], kind) for name, kind in CAMERA_COLUMNS.items()})
    with pytest.raises(UserError, match=r"data\.pose: got cameras, but 1 of 1 rows lack camera_to_world"):
        read_cameras(holes)


def test_sizes_of_poses_are_those_of_the_models() -> None:
    from soda_dist.models.pose_encoding import CAMERA_POSE, PIXEL_POSE

    assert POSE_SIZES == {"none": 0, "pixels": PIXEL_POSE, "cameras": CAMERA_POSE}


def test_the_angle_between_cameras_is_that_of_their_axes() -> None:
    """Around the up axis, as NMR's 24 views of 15 degrees, wherever the cameras stand; exact near 0 and 180."""
    turns = np.radians([0, 1e-4, 15, 90, 179.9999, 180, 345])
    cameras = np.zeros((len(turns), 21), np.float32)
    cameras[:, 2], cameras[:, 6] = np.cos(turns), np.sin(turns)
    cameras[:, 3:12:4] = np.random.default_rng(0).normal(size=(len(turns), 3))
    found = view_angles(cameras[:1], cameras)
    np.testing.assert_allclose(found, [0, 1e-4, 15, 90, 179.9999, 180, 15], atol=1e-5)
