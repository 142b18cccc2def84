"""RandAugment on the training device: the worker's views, computed in batches."""

import numpy as np
import pytest
import torch
from PIL import Image

from soda_dist.config.sections import Augmentation, Data
from soda_dist.data.views import randaugment
from soda_dist.data.views.pair_views import view_pairs
from soda_dist.data.views.randaugment import OPERATIONS, encode_layers
from soda_dist.training.device_randaugment import distort
from soda_dist.training.to_device import to_device
from tests.data.views.test_decode import encoded, scene
from tests.tiny import pairs_at, tiny_config

PLACE = {operation.name: place for place, operation in enumerate(OPERATIONS)}
ROUNDED = {"Color": 1, "Sharpness": 1}
MOVED = ("Rotate", "ShearX", "ShearY")
COUNT = 40


def images(side: int) -> np.ndarray:
    rng = np.random.default_rng(side)
    made = [scene(side, side, seed) for seed in range(COUNT - 3)]
    made += [np.full((side, side, 3), 77, np.uint8), rng.integers(0, 256, (side, side, 3), np.uint8)]
    made.append((made[0] // 3 + 40).astype(np.uint8))
    return np.stack(made)


def layers_of(name: str) -> list[list[randaugment.Layer]]:
    rng = np.random.default_rng(PLACE[name])
    return [[(PLACE[name], float(rng.uniform(0, 10)), int(rng.choice([-1, 1])))] for _ in range(COUNT)]


@pytest.mark.parametrize("side", [16, 45])
@pytest.mark.parametrize("name", PLACE)
def test_each_operation_is_the_workers(name: str, side: int) -> None:
    before, layers = images(side), layers_of(name)
    ours = torch.from_numpy(before.copy())
    distort(ours, encode_layers(layers, 1))
    expected = np.stack([randaugment.distort(image, own) for image, own in zip(before, layers, strict=True)])
    difference = np.abs(ours.numpy().astype(int) - expected)
    if name in MOVED:
        assert np.median(difference) <= 1 and difference.mean() < 1.2, (difference.mean(), difference.max())
    else:
        assert difference.max() <= ROUNDED.get(name, 0)
    assert not np.array_equal(ours.numpy(), before)


def test_moved_pixels_against_a_float64_loop() -> None:
    """Rotations about the centre, read at exact places: within rounding, where the worker's are to 1/32 pixel."""
    before, layers = images(15)[:4], layers_of("Rotate")[:4]
    ours = torch.from_numpy(before.copy())
    distort(ours, encode_layers(layers, 1))
    for image, [(_, magnitude, sign)], got in zip(before, layers, ours.numpy(), strict=True):
        angle = np.radians(sign * 3 * magnitude)
        padded = np.pad(image.astype(float), ((20, 20), (20, 20), (0, 0)), constant_values=128)
        for y in range(15):
            for x in range(15):
                dx, dy = x - 7, y - 7
                at = np.cos(angle) * dx - np.sin(angle) * dy + 27, np.sin(angle) * dx + np.cos(angle) * dy + 27
                left, top = int(np.floor(at[0])), int(np.floor(at[1]))
                u, v = at[0] - left, at[1] - top
                corner = padded[top : top + 2, left : left + 2]
                value = (1 - v) * ((1 - u) * corner[0, 0] + u * corner[0, 1]) + v * (
                    (1 - u) * corner[1, 0] + u * corner[1, 1]
                )
                assert np.abs(got[y, x] - value).max() <= 0.51, (y, x)


def test_several_layers_come_one_after_the_other_and_images_without_stay() -> None:
    before = images(24)
    layers = [layer + other for layer, other in zip(layers_of("Invert"), layers_of("Posterize"), strict=True)]
    layers[::3] = [[] for _ in layers[::3]]
    ours = torch.from_numpy(before.copy())
    distort(ours, encode_layers(layers, 2))
    expected = np.stack([randaugment.distort(image, own) for image, own in zip(before, layers, strict=True)])
    assert np.array_equal(ours.numpy(), expected)
    assert np.array_equal(ours.numpy()[::3], before[::3])


def test_the_device_finishes_what_the_workers_left_to_do() -> None:
    """The same layers on the same crops; levels aside, which rounding and coordinates move."""
    bytes_ = [encoded(Image.fromarray(scene(60, 80, number)), "PNG") for number in range(COUNT)] + [b"no image"]
    keys = np.arange(len(bytes_))
    shown = np.stack([keys, keys, keys], 1)
    shown[::4, 1] = -1
    made = {}
    for place in ("worker", "device"):
        how = Augmentation(randaugment_rate=0.65, randaugment_on=place)
        data = Data(source_size=48, target_size=32, sources=(1, 2), augmentation=how)
        made[place] = view_pairs(bytes_, shown, keys, keys * 0, seed=3, data=data)
    there, here = made["device"], made["worker"]
    assert here.target_layers.shape == (COUNT + 1, 0, 2) and there.source_layers.shape == (COUNT + 1, 2, 2, 2)
    assert (there.source_layers[shown[:, :2] < 0] == [-1, 0]).all() and (there.target_layers[-1] == [-1, 0]).all()
    assert 0.5 < (there.target_layers[:-1, 0, 0] >= 0).mean() < 0.8
    source, target = torch.from_numpy(there.source), torch.from_numpy(there.target)
    distort(source.flatten(0, 1), there.source_layers.reshape(-1, 2, 2))
    distort(target, there.target_layers)
    for got, expected in ((source, here.source), (target, here.target)):
        difference = np.abs(got.numpy().astype(int) - expected)
        assert difference.mean() < 0.6 and np.quantile(difference, 0.99) <= 12


def test_the_training_step_gets_finished_views() -> None:
    config = tiny_config()
    pairs = pairs_at(config, 0, 4)
    invert = np.tile(np.float32([PLACE["Invert"], 0]), (4, 1, 1, 1))
    left = type(pairs)(**{**vars(pairs), "source_layers": invert, "target_layers": invert[:, 0]})
    batch = to_device(left, torch.device("cpu"))
    assert np.array_equal(batch.source.numpy(), 255 - pairs.source)
    assert np.array_equal(batch.target.numpy(), 255 - pairs.target)
    assert np.array_equal(to_device(pairs, torch.device("cpu")).source.numpy(), pairs.source)
