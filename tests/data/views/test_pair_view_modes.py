"""What the views of a pair share, and which of them are augmented (section 3.3, D.3, figure 6)."""

from typing import Any

import cv2
import numpy as np
import pytest

from soda_dist.config.sections import Augmentation, Data
from soda_dist.data.views.crops import plan_crops, resize_into
from soda_dist.data.views.decode import decode, read_header
from soda_dist.data.views.pair_views import ViewPairs, center_views, view_pairs
from soda_dist.data.views.randaugment import distort, plan_layers
from tests.data.views.test_decode import scene

COUNT = 24
ALWAYS = Augmentation(crop_flip_rate=1.0, randaugment_rate=0.7)
SQUARE = [cv2.imencode(".png", scene(40 + i, 40 + i, i))[1].tobytes() for i in range(COUNT)]
WIDE = [cv2.imencode(".jpg" if i % 2 else ".png", scene(60 + 9 * i, 90 + i, i))[1].tobytes() for i in range(COUNT)]
KEYS, EPOCHS = np.arange(COUNT) * 13, np.arange(COUNT) % 2


def made(images: list[bytes], data: Data, shown: np.ndarray | None = None) -> ViewPairs:
    if shown is None:
        shown = np.repeat(np.arange(COUNT)[:, None], data.sources[1] + 1, axis=1)
    return view_pairs(images, shown, KEYS, EPOCHS, seed=6, data=data)


def config(**fields: Any) -> Data:
    return Data(**{"source_size": 32, "target_size": 24, "augmentation": ALWAYS, **fields})


def by_hand(images: list[bytes], purpose: str, size: int) -> np.ndarray:
    """Augmented views at an address, one by one, from whole images."""
    out = np.zeros((COUNT, size, size, 3), np.uint8)
    for i, image in enumerate(images):
        header = read_header(image)
        assert header is not None
        pixels = decode(image, header, 1)
        assert pixels is not None
        at = EPOCHS[i : i + 1], KEYS[i : i + 1]
        crops = plan_crops(6, f"{purpose}/crop", *at, np.array([pixels.shape[:2]]), ALWAYS)
        top, left, height, width = crops.boxes[0].tolist()
        resize_into(pixels[top : top + height, left : left + width], out[i], bool(crops.flipped[0]))
        out[i] = distort(out[i], plan_layers(6, f"{purpose}/randaugment", *at, ALWAYS)[0])
    return out


def differing(a: np.ndarray, b: np.ndarray) -> float:
    """Share of the pairs whose views differ."""
    return float((a != b).reshape(len(a), -1).any(1).mean())


def test_every_view_is_drawn_at_an_address_of_its_own() -> None:
    found = made(SQUARE, config(sources=(3, 3)))
    for slot, purpose in enumerate(("views/source", "views/source/1", "views/source/2")):
        assert np.array_equal(found.source[:, slot], by_hand(SQUARE, purpose, 32)), slot
    assert np.array_equal(found.target, by_hand(SQUARE, "views/target", 24))


def test_more_sources_leave_the_first_and_the_target_as_they_are() -> None:
    one, four = made(WIDE, config()), made(SQUARE, config(sources=(4, 4)))
    assert np.array_equal(made(SQUARE, config()).source[:, 0], four.source[:, 0])
    assert np.array_equal(made(SQUARE, config()).target, four.target)
    assert one.source.shape == (COUNT, 1, 32, 32, 3)


def test_crops_of_one_pair_are_unrelated() -> None:
    count = 1500
    image = cv2.imencode(".png", np.zeros((64, 64, 3), np.uint8))[1].tobytes()
    data = config(source_size=8, target_size=8, sources=(2, 2), pose="pixels")
    shown = np.zeros((count, 3), np.int64)
    found = view_pairs([image], shown, np.arange(count), np.zeros(count, int), seed=0, data=data)
    places = np.column_stack([found.source_pose[:, 0], found.source_pose[:, 1], found.target_pose])
    correlation = np.corrcoef(places.T)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(correlation[4 * a : 4 * a + 4, 4 * b : 4 * b + 4]).max() < 0.1


@pytest.mark.parametrize("rate", [0.0, 0.7, 1.0])
def test_views_that_are_the_same_are_bit_equal(rate: float) -> None:
    how = Augmentation(crop_flip_rate=0.9, randaugment_rate=rate)
    found = made(WIDE, config(views="same", target_size=32, augmentation=how, pose="pixels"))
    assert np.array_equal(found.source[:, 0], found.target)
    assert np.array_equal(found.source_pose[:, 0], found.target_pose)
    one, two = (made(SQUARE, config(views=views, target_size=32, augmentation=how)) for views in ("same", "augmented"))
    assert np.array_equal(one.source, two.source), "the source's draws"
    assert differing(one.target, two.target) > 0.8


def test_the_same_views_in_two_sizes_show_the_same() -> None:
    found = made(SQUARE, config(views="same", pose="pixels"))
    assert np.array_equal(found.source_pose[:, 0], found.target_pose)
    assert np.array_equal(found.source[:, 0], by_hand(SQUARE, "views/source", 32))
    assert np.array_equal(found.target, by_hand(SQUARE, "views/source", 24))


@pytest.mark.parametrize("augment", ["both", "source", "target", "none"])
def test_views_that_are_not_augmented_are_central_squares(augment: str) -> None:
    found = made(SQUARE, config(augment=augment, sources=(2, 2), pose="pixels"))
    centre = {size: center_views(SQUARE, size=size, resize=1.0)[0] for size in (32, 24)}
    for view, pose, size, role, purpose in (
        (found.source[:, 0], found.source_pose[:, 0], 32, "source", "views/source"),
        (found.source[:, 1], found.source_pose[:, 1], 32, "source", "views/source/1"),
        (found.target, found.target_pose, 24, "target", "views/target"),
    ):
        if augment in ("both", role):
            assert np.array_equal(view, by_hand(SQUARE, purpose, size))
            assert differing(view, centre[size]) == 1
        else:
            assert np.array_equal(view, centre[size])
            assert (pose == [-1, -1, 1, 1]).all()


def test_a_view_that_is_not_augmented_is_one_whose_crop_did_not_fire() -> None:
    quiet = Augmentation(crop_flip_rate=0.0)
    never, none = made(WIDE, config(augmentation=quiet)), made(WIDE, config(augment="none"))
    assert np.array_equal(never.source, none.source)
    assert np.array_equal(never.target, none.target)


def test_empty_slots_are_zeros_and_change_nothing() -> None:
    data = config(sources=(1, 3), pose="pixels")
    whole = made(WIDE, data)
    shown = np.repeat(np.arange(COUNT)[:, None], 4, axis=1)
    shown[::2, 1:3] = -1
    shown[1::4, 2] = -1
    part = made(WIDE, data, shown)
    there = shown[:, :3] >= 0
    assert not part.source[~there].any()
    assert not part.source_pose[~there].any()
    assert np.array_equal(part.source_pose[there].any(1), np.ones(there.sum(), bool))
    png = np.array([i % 2 == 0 for i in range(COUNT)])  # a JPEG is decoded for all its views
    assert np.array_equal(part.source[png][there[png]], whole.source[png][there[png]])
    assert np.array_equal(part.target[png], whole.target[png])


def test_views_of_other_images_are_theirs_and_drawn_for_the_pair() -> None:
    """Source and target show different images; each pixel is that of the image shown, at the pair's address."""
    shown = np.column_stack([np.roll(np.arange(COUNT), 5), np.arange(COUNT)])
    found = made(SQUARE, config(), shown)
    assert np.array_equal(found.source[:, 0], by_hand([SQUARE[i] for i in shown[:, 0]], "views/source", 32))
    assert np.array_equal(found.target, by_hand(SQUARE, "views/target", 24))


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_an_image_that_cannot_be_read_is_named_wherever_it_is_shown(bad: int) -> None:
    images = [SQUARE[0], SQUARE[1], SQUARE[2]]
    images[bad] = images[bad][: len(images[bad]) // 2]
    shown = np.tile([0, 1, 2], (COUNT, 1))
    shown[3] = [(bad + 1) % 3, -1, (bad + 2) % 3]
    found = made(images, config(sources=(2, 2), pose="pixels"), shown)
    hit = (shown == bad).any(1)
    assert 0 < hit.sum() < COUNT
    assert np.array_equal(found.ok, ~hit)
    assert (found.unread[hit] == bad).all()
    for array in (found.source, found.target, found.source_pose, found.target_pose):
        assert not array[hit].any()
        assert array[~hit].any()
