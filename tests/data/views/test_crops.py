import math

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torchvision.transforms import RandomResizedCrop

from soda_dist.config.sections import Augmentation
from soda_dist.data.views.addressed import uniforms
from soda_dist.data.views.crops import DRAWS, TRIES, plan_crops, random_boxes, resize_into, square_boxes
from tests.data.views.test_decode import Pixels, scene

AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)


def slow_box(
    u: list[float], height: int, width: int, area: tuple[float, float], aspect: tuple[float, float]
) -> list[int]:
    """RandomResizedCrop, one image, in plain Python."""
    for k in range(TRIES):
        ratio = math.exp(math.log(aspect[0]) + (math.log(aspect[1]) - math.log(aspect[0])) * u[4 + TRIES + k])
        pixels = height * width * (area[0] + (area[1] - area[0]) * u[4 + k])
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            return [int(u[2] * (height - h + 1)), int(u[3] * (width - w + 1)), h, w]
    h, w = height, width
    if width / height < aspect[0]:
        h = round(width / aspect[0])
    elif width / height > aspect[1]:
        w = round(height * aspect[1])
    h, w = max(1, h), max(1, w)
    return [(height - h) // 2, (width - w) // 2, h, w]


@pytest.mark.parametrize("aspect", [ASPECT, (1.0, 1.0), (3.0, 4.0), (0.1, 0.2)])
def test_boxes_follow_the_algorithm(aspect: tuple[float, float]) -> None:
    rng = np.random.default_rng(0)
    sizes = np.concatenate([rng.integers(1, 600, (500, 2)), [[1, 1], [1, 300], [300, 1], [2, 2]]])
    u = uniforms(0, "x", 0, np.arange(len(sizes)), DRAWS)
    got = random_boxes(u, sizes, AREA, aspect)
    assert got.tolist() == [
        slow_box(row, h, w, AREA, aspect) for row, (h, w) in zip(u.tolist(), sizes.tolist(), strict=True)
    ]
    assert (got[:, 2:] > 0).all()
    assert (got[:, :2] >= 0).all()
    assert (got[:, :2] + got[:, 2:] <= sizes).all()


@pytest.mark.parametrize("size", [(375, 500), (100, 400)])
def test_crops_are_spread_as_torchvisions_are(size: tuple[int, int]) -> None:
    count = 2000
    sizes = np.tile(size, (count, 1))
    got = random_boxes(uniforms(0, "x", 0, np.arange(count), DRAWS), sizes, AREA, ASPECT)
    torch.manual_seed(0)
    image = torch.zeros(3, *size)
    theirs = np.array([RandomResizedCrop.get_params(image, list(AREA), list(ASPECT)) for _ in range(count)])
    for column in range(4):
        assert stats.ks_2samp(got[:, column], theirs[:, column]).pvalue > 1e-3
    assert stats.ks_2samp(got[:, 2] / got[:, 3], theirs[:, 2] / theirs[:, 3]).pvalue > 1e-3


def test_a_crop_depends_on_its_own_row_alone() -> None:
    rng = np.random.default_rng(0)
    keys, epochs, sizes = rng.integers(0, 10**9, 70), rng.integers(0, 9, 70), rng.integers(20, 600, (70, 2))
    whole = plan_crops(0, "x", epochs, keys, sizes, Augmentation())
    for width in (1, 2, 3, 5, 8, 13, 33):
        for start in range(0, 70, width):
            at = slice(start, start + width)
            part = plan_crops(0, "x", epochs[at], keys[at], sizes[at], Augmentation())
            assert np.array_equal(part.boxes, whole.boxes[at])
            assert np.array_equal(part.flipped, whole.flipped[at])


def test_rates_of_crop_and_flip() -> None:
    keys = np.arange(20000)
    sizes, epochs = np.tile((375, 500), (len(keys), 1)), np.zeros_like(keys)
    plain = [0, 62, 375, 375]
    got = plan_crops(0, "x", epochs, keys, sizes, Augmentation(crop_flip_rate=0.8))
    untouched = (got.boxes == plain).all(1)
    assert abs(untouched.mean() - 0.2) < 0.01
    assert abs(got.flipped[~untouched].mean() - 0.5) < 0.015
    assert not got.flipped[untouched].any()
    assert not plan_crops(0, "x", epochs, keys, sizes, Augmentation(flip=False)).flipped.any()
    never = plan_crops(0, "x", epochs, keys, sizes, Augmentation(crop_flip_rate=0.0))
    assert (never.boxes == plain).all()


def test_the_central_square() -> None:
    sizes = np.array([[375, 500], [500, 375], [32, 32], [1, 9]])
    assert square_boxes(sizes).tolist() == [[0, 62, 375, 375], [62, 0, 375, 375], [0, 0, 32, 32], [0, 4, 1, 1]]


def pillow(crop: Pixels, size: int) -> Pixels:
    return np.asarray(Image.fromarray(crop).resize((size, size), Image.Resampling.BILINEAR))


@pytest.mark.parametrize("shape", [(20, 27), (32, 32), (9, 40), (50, 50), (61, 48), (64, 64), (150, 201), (333, 500)])
def test_resizing_is_close_to_pillows_antialiased_bilinear(shape: tuple[int, int]) -> None:
    crop, out = scene(*shape, seed=1), np.empty((32, 32, 3), np.uint8)
    resize_into(crop, out, False)
    assert np.abs(out.astype(int) - pillow(crop, 32)).mean() < 2.0
    mirrored = np.empty_like(out)
    resize_into(crop, mirrored, True)
    assert np.array_equal(mirrored, out[:, ::-1])


def test_sides_may_differ() -> None:
    crop, out = scene(90, 30), np.empty((20, 50, 3), np.uint8)
    resize_into(crop, out, False)
    expected = np.asarray(Image.fromarray(crop).resize((50, 20), Image.Resampling.BILINEAR))
    assert np.abs(out.astype(int) - expected).mean() < 2.0


def test_growing_is_plain_bilinear() -> None:
    crop, out = scene(22, 25), np.empty((32, 32, 3), np.uint8)
    resize_into(crop, out, False)
    assert np.abs(out.astype(int) - pillow(crop, 32)).max() <= 1


@pytest.mark.parametrize("shape", [(47, 47), (63, 40), (100, 100), (130, 90)])
def test_shrinking_does_not_alias(shape: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    out = np.empty((32, 32, 3), np.uint8)
    resize_into(noise, out, False)
    assert out.std() < 1.1 * cv2.resize(noise, (32, 32), interpolation=cv2.INTER_AREA).std()


def test_a_view_of_a_larger_image_is_left_alone() -> None:
    image = scene(80, 90)
    before, out = image.copy(), np.empty((32, 32, 3), np.uint8)
    resize_into(image[5:70, 8:80], out, True)
    assert np.array_equal(image, before)
    again = np.empty_like(out)
    resize_into(np.ascontiguousarray(image[5:70, 8:80]), again, True)
    assert np.array_equal(out, again)
