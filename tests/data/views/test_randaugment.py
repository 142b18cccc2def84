from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats

from soda_dist.config.sections import Augmentation
from soda_dist.data.views import randaugment as ra
from tests.data.views.test_decode import Pixels, scene

HOW = Augmentation(randaugment_rate=0.65)
FACTORS = (0.1, 0.5, 1.0, 1.37, 1.72, 1.9)


def images() -> list[Pixels]:
    rng = np.random.default_rng(0)
    flat, two = np.full((16, 20, 3), 77, np.uint8), np.repeat(np.uint8([[[0, 9, 255]], [[3, 9, 4]]]), 20, 1)
    dim = (scene(33, 40) // 3 + 40).astype(np.uint8)
    return [scene(32, 32), scene(45, 60, 3), dim, flat, two, rng.integers(0, 256, (24, 24, 3), np.uint8)]


def by_pillow(image: Pixels, change: Callable[[Image.Image], Image.Image]) -> Pixels:
    return np.asarray(change(Image.fromarray(image)))


def add_below_128(image: Image.Image, add: int) -> Image.Image:
    return image.point([min(255, i + add) if i < 128 else i for i in range(256)] * 3)


EXACT: list[tuple[Callable[[Pixels], Pixels], Callable[[Image.Image], Image.Image]]] = [
    (ra.auto_contrast, ImageOps.autocontrast),
    (ra.equalize, ImageOps.equalize),
    (ra.invert, ImageOps.invert),
    *((lambda x, b=b: ra.posterize(x, b), lambda x, b=b: ImageOps.posterize(x, b)) for b in (1, 3, 4)),
    *((lambda x, t=t: ra.solarize(x, t), lambda x, t=t: ImageOps.solarize(x, t)) for t in (0, 100, 230, 256)),
    *((lambda x, a=a: ra.solarize_add(x, a), lambda x, a=a: add_below_128(x, a)) for a in (0, 99, 110, 127)),
    *((lambda x, f=f: ra.brightness(x, f), lambda x, f=f: ImageEnhance.Brightness(x).enhance(f)) for f in FACTORS),
]


@pytest.mark.parametrize("number", range(len(EXACT)))
def test_operations_on_levels_are_bit_equal_to_pillows(number: int) -> None:
    ours, theirs = EXACT[number]
    for image in images():
        assert np.array_equal(ours(image), by_pillow(image, theirs))


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize(("name", "most"), [("Contrast", 1), ("Color", 2), ("Sharpness", 2)])
def test_operations_on_more_than_a_level_are_within_a_level_or_two_of_pillows(
    name: str, most: int, factor: float
) -> None:
    for image in images():
        expected = by_pillow(image, lambda x: getattr(ImageEnhance, name)(x).enhance(factor)).astype(int)
        difference = np.abs(getattr(ra, name.lower())(image, factor) - expected)
        assert difference.max() <= most
        assert difference.mean() < 0.9


def test_posterize_to_no_bits_is_black() -> None:
    assert not ra.posterize(scene(9, 9), 0).any()


def moved_by_pillow(image: Pixels, matrix: tuple[float, ...]) -> Pixels:
    size = image.shape[1], image.shape[0]
    return by_pillow(
        image,
        lambda x: x.transform(
            size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=(128, 128, 128)
        ),
    )


GEOMETRY = {
    "rotate": lambda x, a: by_pillow(
        x, lambda i: i.rotate(100 * a, Image.Resampling.BILINEAR, fillcolor=(128, 128, 128))
    ),
    "shear_x": lambda x, a: moved_by_pillow(x, (1, a, 0, 0, 1, 0)),
    "shear_y": lambda x, a: moved_by_pillow(x, (1, 0, 0, a, 1, 0)),
    "translate_x": lambda x, a: moved_by_pillow(x, (1, 0, round(a * x.shape[1]), 0, 1, 0)),
    "translate_y": lambda x, a: moved_by_pillow(x, (1, 0, 0, 0, 1, round(a * x.shape[0]))),
}


@pytest.mark.parametrize("amount", [-0.27, -0.1, 0.0, 0.03, 0.27, 0.4])
@pytest.mark.parametrize("name", GEOMETRY)
def test_geometry_is_pillows_but_for_the_edge_against_the_fill(name: str, amount: float) -> None:
    for image in (scene(64, 80), scene(65, 65, 2)):
        got = getattr(ra, name)(image, 100 * amount if name == "rotate" else amount).astype(int)
        expected = GEOMETRY[name](image, amount).astype(int)
        if name.startswith("translate"):
            assert np.array_equal(got, expected)
            continue
        difference = np.abs(got - expected).max(2)
        assert np.median(difference) <= 1
        assert (difference > 6).mean() < 0.045  # one pixel along the border, which Pillow cuts and OpenCV blends
        assert np.abs(got - expected).mean() < 2.0


def test_translation_past_the_image_leaves_the_fill() -> None:
    image = scene(10, 12)
    for share in (-1.5, -1.0, 1.0, 2.0):
        assert (ra.translate_x(image, share) == 128).all()
        assert (ra.translate_y(image, share) == 128).all()


@pytest.mark.parametrize("operation", ra.OPERATIONS, ids=lambda operation: operation.name)
def test_no_operation_writes_into_its_input(operation: ra.Operation) -> None:
    image = scene(40, 40).clip(5, 250)
    before = image.copy()
    out = operation.apply(image, operation.amount(0.9, 1)) if operation.amount else operation.apply(image)
    assert np.array_equal(image, before)
    assert out.shape == image.shape
    assert out.dtype == np.uint8
    assert not np.array_equal(out, image)


def test_amounts_are_those_of_timm_without_its_increasing_variants() -> None:
    from timm.data.auto_augment import LEVEL_TO_ARG

    names = {o.name: o.amount for o in ra.OPERATIONS if o.amount}
    for name, amount in names.items():
        theirs = LEVEL_TO_ARG[name + "Rel" if name.startswith("Translate") else name]
        for magnitude in (0.0, 4.4, 8.5, 9.0, 10.0):
            assert abs(amount(magnitude / ra.MAX_MAGNITUDE, 1)) == pytest.approx(abs(theirs(magnitude, {})[0]))
            assert amount(magnitude / ra.MAX_MAGNITUDE, -1) in (
                amount(magnitude / ra.MAX_MAGNITUDE, 1),
                -amount(magnitude / ra.MAX_MAGNITUDE, 1),
            )


def test_plans_have_the_asked_rates_and_spreads() -> None:
    keys = np.arange(20000)
    plans = ra.plan_layers(0, "x", np.zeros_like(keys), keys, HOW)
    assert abs(np.mean([bool(p) for p in plans]) - 0.65) < 0.012
    chosen = [layer for plan in plans for layer in plan]
    assert len(chosen) == 2 * sum(bool(p) for p in plans)
    assert stats.chisquare([Counter(o for o, _, _ in chosen)[i] for i in range(15)]).pvalue > 1e-3
    assert stats.chisquare(list(Counter((p[0][0], p[1][0]) for p in plans if p).values())).pvalue > 1e-3
    assert (
        stats.chisquare([Counter((o, s) for o, _, s in chosen)[i, s] for i in range(15) for s in (-1, 1)]).pvalue > 1e-3
    )
    magnitude = np.array([m for _, m, _ in chosen])
    assert magnitude.max() == ra.MAX_MAGNITUDE  # clipped at two standard deviations
    inner = magnitude[magnitude < ra.MAX_MAGNITUDE]
    assert stats.kstest(inner, stats.truncnorm(-np.inf, 2, 9, 0.5).cdf).pvalue > 1e-3


def test_a_plan_depends_on_its_own_row_alone() -> None:
    keys, epochs = np.arange(50), np.arange(50) % 3
    whole = ra.plan_layers(0, "x", epochs, keys, HOW)
    assert ra.plan_layers(0, "x", epochs[31:33], keys[31:33], HOW) == whole[31:33]
    assert ra.plan_layers(0, "y", epochs, keys, HOW) != whole
    three = ra.plan_layers(0, "x", epochs, keys, HOW.model_copy(update={"randaugment_layers": 3}))
    assert {len(p) for p in three} == {0, 3}


def test_layers_are_done_in_order() -> None:
    image = scene(32, 32)
    names = [o.name for o in ra.OPERATIONS]
    layers = [(names.index("Solarize"), 5.0, 1), (names.index("Brightness"), 9.0, 1)]
    assert np.array_equal(ra.distort(image, layers), ra.brightness(ra.solarize(image, 128), 0.1 + 1.8 * 0.9))
    assert not np.array_equal(ra.distort(image, layers), ra.distort(image, layers[::-1]))
