import io
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from PIL import Image
from skimage import data
from skimage.metrics import structural_similarity
from torchvision.transforms import v2

from soda_dist.config.sections import Augmentation, Data
from soda_dist.data.views.crops import plan_crops
from soda_dist.data.views.pair_views import ViewPairs, center_views, view_pairs
from soda_dist.data.views.randaugment import distort, plan_layers
from tests.data.views.test_decode import encoded, scene

HOW = Augmentation(randaugment_rate=0.65)
DATA = Data(source_size=48, target_size=32, augmentation=HOW)
BROKEN = {3: b"", 7: b"\xff\xd8 no more"}


def photographs(count: int) -> list[bytes]:
    rng = np.random.default_rng(0)
    sizes = rng.integers(20, 500, (count, 2)).tolist()
    kinds = ["JPEG", "JPEG", "JPEG", "PNG", "WEBP"]
    images = [encoded(Image.fromarray(scene(h, w, i)), kinds[i % 5]) for i, (h, w) in enumerate(sizes)]
    return [BROKEN.get(i, image) for i, image in enumerate(images)]


IMAGES = photographs(40)
KEYS, EPOCHS = np.arange(40) * 1001, np.arange(40) % 3


def own_pairs(images: list[bytes], keys: np.ndarray, epochs: np.ndarray, *, seed: int, data: Data) -> ViewPairs:
    """Pairs of one source, whose views both show the pair's own image; source uint8 [n, s, s, 3]."""
    own = np.arange(len(images))
    made = view_pairs(images, np.stack([own, own], 1), keys, epochs, seed=seed, data=data)
    # `unread` names a place in the batch: only whether there is one belongs to the pair.
    return made._replace(source=made.source[:, 0], unread=np.minimum(made.unread, 0))


def same(a: ViewPairs, b: ViewPairs) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def part(views: ViewPairs, at: np.ndarray) -> ViewPairs:
    return ViewPairs(*(column[at] for column in views))


def views(at: np.ndarray, data: Data = DATA, seed: int = 0) -> ViewPairs:
    return own_pairs([IMAGES[i] for i in at], KEYS[at], EPOCHS[at], seed=seed, data=data)


WHOLE = views(np.arange(40))


def test_what_else_is_in_the_batch_changes_no_bit() -> None:
    rng = np.random.default_rng(1)
    for at in (np.arange(40)[::-1], rng.permutation(40)[:17], *(np.array([i]) for i in range(40))):
        assert same(views(at), part(WHOLE, at))


def test_threads_of_python_and_of_opencv_change_no_bit() -> None:
    before = cv2.getNumThreads()
    try:
        for count in (0, 1, 4):
            cv2.setNumThreads(count)
            assert same(views(np.arange(40)), WHOLE)
    finally:
        cv2.setNumThreads(before)
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: views(np.arange(40)), range(8)):
            assert same(result, WHOLE)


def test_seed_epoch_and_key_each_change_both_views_and_source_differs_from_target() -> None:
    data = Data(source_size=32, target_size=32, augmentation=HOW)
    image = [encoded(Image.fromarray(scene(200, 260)), "JPEG")]
    draw = [
        own_pairs(image, np.array([key]), np.array([epoch]), seed=seed, data=data)
        for seed, epoch, key in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
    ]
    seen = [views.source[0].tobytes() for views in draw] + [views.target[0].tobytes() for views in draw]
    assert len(set(seen)) == 8


def test_unreadable_rows_are_zeros_and_said_so() -> None:
    assert WHOLE.ok.tolist() == [i not in BROKEN for i in range(40)]
    for i in BROKEN:
        assert not WHOLE.source[i].any()
        assert not WHOLE.target[i].any()
    assert WHOLE.source.reshape(40, -1).any(1).tolist() == WHOLE.ok.tolist()
    assert WHOLE.source.shape == (40, 48, 48, 3)
    assert WHOLE.target.shape == (40, 32, 32, 3)
    assert WHOLE.source.dtype == WHOLE.target.dtype == np.uint8


@pytest.mark.parametrize("side", [100, 700])
def test_a_view_is_the_planned_crop_flip_and_layers_of_the_image(side: int) -> None:
    """At 700 px JPEG decodes at a fraction of the size; the view is the same picture."""
    count = 30
    pixels = [scene(side, side + 40, i) for i in range(count)]
    images = [encoded(Image.fromarray(p), "JPEG", quality=95, subsampling=0) for p in pixels]
    keys, epochs = np.arange(count), np.full(count, 2)
    sizes = np.tile((side, side + 40), (count, 1))
    got = own_pairs(images, keys, epochs, seed=5, data=DATA)
    for view, out, size in (("source", got.source, 48), ("target", got.target, 32)):
        crops = plan_crops(5, f"views/{view}/crop", epochs, keys, sizes, HOW)
        layers = plan_layers(5, f"views/{view}/randaugment", epochs, keys, HOW)
        apart = []
        for i in range(count):
            top, left, height, width = crops.boxes[i].tolist()
            crop = Image.open(io.BytesIO(images[i])).crop((left, top, left + width, top + height))
            expected = np.asarray(crop.resize((size, size), Image.Resampling.BILINEAR))
            expected = distort(expected[:, ::-1].copy() if crops.flipped[i] else expected, layers[i])
            apart.append(np.abs(out[i].astype(int) - expected).mean())
        # Equalize, solarize, posterize and auto-contrast make much of a level, so such rows are judged more loosely.
        plain = np.array([not own for own in layers])
        assert plain.any() and max(np.array(apart)[plain]) < 4
        assert np.median(np.array(apart)[~plain]) < 4 and max(apart) < 25


@pytest.mark.parametrize("size", [32, 64, 100])
def test_decoding_at_a_fraction_of_the_size_costs_no_detail(size: int) -> None:
    """Photographs, against Pillow's antialiased resize of the crop from the whole image."""
    photographs = [Image.fromarray(picture()) for picture in (data.astronaut, data.coffee, data.chelsea, data.rocket)]
    images = [encoded(photo, "JPEG", quality=95, subsampling=0) for photo in photographs] * 6
    keys, epochs = np.arange(len(images)), np.zeros(len(images), int)
    how = Augmentation(crop_area=(0.08, 1.0), randaugment_rate=0.0)
    got = own_pairs(images, keys, epochs, seed=1, data=Data(source_size=size, target_size=size, augmentation=how))
    sizes = np.array([photo.size[::-1] for photo in photographs] * 6)
    crops = plan_crops(1, "views/source/crop", epochs, keys, sizes, how)
    found = []
    for i in range(len(images)):
        top, left, height, width = crops.boxes[i].tolist()
        crop = Image.open(io.BytesIO(images[i])).crop((left, top, left + width, top + height))
        wanted = np.asarray(crop.resize((size, size), Image.Resampling.BILINEAR))
        wanted = wanted[:, ::-1] if crops.flipped[i] else wanted
        found.append(structural_similarity(got.source[i], wanted, channel_axis=2))
    assert min(found) > 0.98, np.round(found, 3)


def test_without_augmentation_a_view_is_the_central_square() -> None:
    plain = Data(source_size=48, target_size=32, augmentation=Augmentation(crop_flip_rate=0.0))
    got = views(np.arange(40), plain)
    for out, size in ((got.source, 48), (got.target, 32)):
        expected, ok = center_views(IMAGES, size=size, resize=1.0)
        assert np.array_equal(ok, got.ok)
        assert np.abs(out.astype(int) - expected).mean() < 3.5


@pytest.mark.parametrize(("size", "resize"), [(32, 1.0), (28, 8 / 7)])
def test_center_views_are_torchvisions_resize_and_center_crop(size: int, resize: float) -> None:
    got, ok = center_views(IMAGES, size=size, resize=resize)
    theirs = v2.Compose([v2.Resize(round(size * resize)), v2.CenterCrop(size)])
    for i, image in enumerate(IMAGES):
        assert ok[i] == (i not in BROKEN)
        if ok[i]:
            expected = np.asarray(theirs(Image.open(io.BytesIO(image)).convert("RGB")))
            assert np.abs(got[i].astype(int) - expected).mean() < 4.0
    again, _ = center_views(IMAGES[11:13], size=size, resize=resize)
    assert np.array_equal(again, got[11:13])


def test_no_images_give_no_views() -> None:
    nothing = own_pairs([], np.zeros(0, np.int64), np.zeros(0, np.int64), seed=0, data=DATA)
    assert nothing.source.shape == (0, 48, 48, 3)
    assert nothing.ok.shape == (0,)
    assert center_views([], size=8, resize=1.0)[0].shape == (0, 8, 8, 3)
