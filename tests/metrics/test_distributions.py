"""Moments, FID, KID, precision and recall against closed forms, slow loops, scipy and torch-fidelity."""

import itertools
import pickle
from functools import reduce

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor
from torch_fidelity.defaults import DEFAULTS
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from soda_dist.metrics.distributions import (
    KernelDistance,
    Moments,
    PrecisionRecall,
    fid,
    kid,
    merge,
    moments,
    precision_recall,
)


def rows(count: int, width: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    """float32, with axes that are correlated and of unequal size."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=torch.Generator().manual_seed(99)) / width**0.5
    return scale * torch.randn(count, width, generator=generator) @ mixing + shift


def test_moments_are_numpys():
    x = rows(50, 6, 0, shift=3.0)
    found = moments(x)
    assert found.count == 50
    np.testing.assert_allclose(found.mean, x.double().numpy().mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(found.scatter / 49, np.cov(x.numpy(), rowvar=False), rtol=1e-11, atol=1e-14)


def test_uneven_parts_merge_to_the_whole_in_every_order():
    """Far from 0, where sums of squares would lose all digits; the parts are sent as a worker would send them."""
    x = rows(60, 5, 1).double() + 1e5
    whole = moments(x)
    parts = [pickle.loads(pickle.dumps(moments(part))) for part in x.split([1, 2, 0, 40, 17])]
    for order in itertools.permutations(parts):
        merged = reduce(merge, order)
        assert merged.count == 60
        np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-14)
        np.testing.assert_allclose(merged.scatter, whole.scatter, rtol=0, atol=1e-10 * np.abs(whole.scatter).max())
    pair, swapped = merge(parts[3], parts[4]), merge(parts[4], parts[3])
    assert np.array_equal(pair.scatter, swapped.scatter) and np.array_equal(pair.mean, swapped.mean)
    other = moments(rows(30, 5, 2) + 1e5)
    assert fid(reduce(merge, parts), other) == pytest.approx(fid(whole, other), rel=1e-8)


def test_nothing_merged_with_nothing_is_nothing():
    empty = moments(torch.zeros(0, 3))
    both = merge(empty, empty)
    assert both.count == 0 and not both.mean.any() and not both.scatter.any()


def test_fid_of_gaussians_with_common_axes_has_a_closed_form():
    """|difference|^2 + sum of (sigma_a - sigma_b)^2, whatever the axes."""
    generator = np.random.default_rng(0)
    mean_a, mean_b = generator.normal(size=(2, 12))
    sigma_a, sigma_b = generator.uniform(0.1, 3.0, size=(2, 12))
    sigma_a[0] = sigma_b[1] = 0.0
    expected = np.sum((mean_a - mean_b) ** 2) + np.sum((sigma_a - sigma_b) ** 2)
    turned = np.linalg.qr(generator.normal(size=(12, 12)))[0]
    for axes in (np.eye(12), turned):
        a = Moments(11, mean_a, (axes * sigma_a**2) @ axes.T * 10)
        b = Moments(101, mean_b, (axes * sigma_b**2) @ axes.T * 100)
        assert fid(a, b) == pytest.approx(expected, rel=1e-12)
        assert fid(b, a) == pytest.approx(expected, rel=1e-12)


def by_scipy(a: Tensor, b: Tensor) -> float:
    covariances = [np.cov(side.double().numpy(), rowvar=False) for side in (a, b)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    apart = (a.double().mean(dim=0) - b.double().mean(dim=0)).square().sum()
    return float(apart + np.trace(covariances[0] + covariances[1] - 2 * root))


def by_torch_fidelity(a: Tensor, b: Tensor) -> float:
    statistics = [fid_features_to_statistics(side) for side in (a, b)]
    return fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]


def test_fid_is_scipys_and_torch_fidelitys():
    a, b = rows(300, 40, 3), rows(200, 40, 4, scale=1.3, shift=0.2)
    found = fid(moments(a), moments(b))
    assert found == pytest.approx(by_scipy(a, b), rel=1e-10)
    assert found == pytest.approx(by_torch_fidelity(a, b), rel=1e-5)


def test_fid_of_fewer_features_than_axes():
    """Features in a subspace have the FID that they have within it, where scipy's root is sound."""
    a, b = rows(40, 6, 5).double(), rows(30, 6, 6, scale=0.5, shift=1.0).double()
    axes = torch.linalg.qr(torch.randn(200, 6, generator=torch.Generator().manual_seed(7)).double()).Q
    wide_a, wide_b = a @ axes.T, b @ axes.T
    found = fid(moments(wide_a), moments(wide_b))
    assert found == pytest.approx(by_scipy(a, b), rel=1e-11)
    assert found == pytest.approx(by_torch_fidelity(wide_a, wide_b), rel=1e-4)
    few, others = rows(10, 200, 8), rows(12, 200, 9)
    assert fid(moments(few), moments(others)) == pytest.approx(by_torch_fidelity(few, others), rel=1e-4)


def test_fid_loses_no_digits_to_axes_without_variance():
    few = moments(rows(10, 150, 10))
    assert abs(fid(few, few)) < 1e-12 * np.trace(few.scatter)
    left, right = rows(20, 60, 11).double(), rows(15, 60, 12).double()
    a, b = moments(torch.cat([left, left * 0], dim=1)), moments(torch.cat([right * 0, right], dim=1))
    apart = np.sum((a.mean - b.mean) ** 2)
    assert fid(a, b) == pytest.approx(apart + np.trace(a.scatter) / 19 + np.trace(b.scatter) / 14, rel=1e-13)


def test_fid_of_sets_of_one_image_each_is_their_squared_distance():
    a, b = moments(torch.ones(3, 4)), moments(torch.full((5, 4), 3.0))
    assert fid(a, b) == pytest.approx(16.0, rel=1e-15)


def mmd(x: Tensor, y: Tensor) -> float:
    """Pair by pair."""

    def kernel(u: Tensor, v: Tensor) -> float:
        return (float(u @ v) / len(u) + 1.0) ** 3

    def within(side: Tensor) -> float:
        return float(np.mean([kernel(u, v) for u, v in itertools.permutations(side, 2)]))

    return within(x) + within(y) - 2 * float(np.mean([kernel(u, v) for u, v in itertools.product(x, y)]))


def test_kid_of_one_subset_of_all_is_the_mean_over_pairs():
    x, y = rows(9, 5, 13, shift=0.5).double(), rows(9, 5, 14).double()
    found = kid(x, y, subsets=3, subset_size=9)
    assert found.mean == pytest.approx(mmd(x, y), rel=1e-12)
    assert found.std < 1e-12


@pytest.mark.parametrize("seed", [2020, 3])
def test_kid_is_torch_fidelitys(seed):
    x, y = rows(70, 32, 15), rows(90, 32, 16, scale=1.1, shift=0.1)
    found = kid(x, y, subsets=7, subset_size=50, seed=seed)
    settings = {"kid_subsets": 7, "kid_subset_size": 50, "rng_seed": seed, "verbose": False}
    for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 1e-6)):
        theirs = kid_features_to_metric(x.to(dtype), y.to(dtype), **settings)
        assert found.mean == pytest.approx(theirs["kernel_inception_distance_mean"], abs=tolerance)
        assert found.std == pytest.approx(theirs["kernel_inception_distance_std"], abs=tolerance)
    assert found.std > 1e-3
    assert kid(x, y, subsets=7, subset_size=50, seed=seed + 1) != found


def test_defaults_are_torch_fidelitys():
    theirs = {"subsets": "kid_subsets", "subset_size": "kid_subset_size", "seed": "rng_seed"}
    assert kid.__kwdefaults__ == {ours: DEFAULTS[name] for ours, name in theirs.items()}
    assert precision_recall.__kwdefaults__["neighbours"] == DEFAULTS["prc_neighborhood"]


def test_kid_of_one_distribution_lies_around_zero_and_of_two_does_not():
    x = rows(400, 8, 19)
    same, apart = (kid(x, rows(400, 8, 20, shift=shift), subsets=50, subset_size=40) for shift in (0.0, 0.5))
    assert abs(same.mean) < same.std / 2
    assert apart.mean > 2 * apart.std


@pytest.mark.parametrize("block", [3, 64, 1000])
def test_precision_and_recall_are_torch_fidelitys_whatever_the_block(block):
    generated, real = rows(80, 6, 21, scale=0.9, shift=0.6), rows(110, 6, 22)
    found = precision_recall(generated, real, block=block)
    for in_parts in (False, True):
        theirs = prc_features_to_metric(generated, real, save_cpu_ram=in_parts, verbose=False)
        assert found.precision == pytest.approx(theirs["precision"], abs=1e-7)
        assert found.recall == pytest.approx(theirs["recall"], abs=1e-7)
    assert 0.2 < found.recall < found.precision < 1.0


def share_inside(queries: Tensor, centres: Tensor, neighbours: int) -> float:
    """Pair by pair, each centre's own distance left out."""
    hits = 0
    for query in queries:
        for i, centre in enumerate(centres):
            others = sorted(float((centre - c).norm()) for j, c in enumerate(centres) if j != i)
            if float((query - centre).norm()) <= others[neighbours - 1]:
                hits += 1
                break
    return hits / len(queries)


@pytest.mark.parametrize("neighbours", [1, 3, 5])
def test_precision_and_recall_are_those_of_a_loop_over_pairs(neighbours):
    generated, real = rows(25, 3, 23, shift=0.3).double(), rows(18, 3, 24, scale=0.8).double()
    found = precision_recall(generated, real, neighbours=neighbours)
    assert found.precision == share_inside(generated, real, neighbours)
    assert found.recall == share_inside(real, generated, neighbours)
    assert found.precision != found.recall


def test_a_side_that_covers_half_of_the_other_is_precise_and_forgets_half():
    one = rows(20, 4, 25)
    both = torch.cat([one, rows(20, 4, 26) + 100.0])
    assert precision_recall(one, both) == PrecisionRecall(1.0, 0.5)
    assert precision_recall(both, one) == PrecisionRecall(0.5, 1.0)
    assert precision_recall(one, one) == PrecisionRecall(1.0, 1.0)
    assert precision_recall(one, one + 100.0) == PrecisionRecall(0.0, 0.0)


@pytest.mark.parametrize("block", [13, 1000])
def test_copies_of_one_image_cover_nothing_but_it(block):
    """Balls of radius 0: rounding, which depends on sizes and blocks, would open or close them."""
    real = rows(61, 2048, 27, shift=5.0)
    for i in range(0, 61, 6):
        assert precision_recall(real[i].expand(50, -1), real, block=block) == PrecisionRecall(1.0, 1 / 61)
    fourfold = real.repeat(4, 1)
    assert precision_recall(fourfold, real, block=block) == PrecisionRecall(1.0, 1.0)
    assert precision_recall(real + 1e-3, fourfold, block=block).precision == 0.0


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda x: moments(x[0]), r"features: got \[5\]; allowed: \[N, D\]"),
        (lambda x: moments(x / 0), "features: got values that are not finite"),
        (lambda x: kid(x, x * torch.nan, subset_size=3), "features: got values that are not finite"),
        (lambda x: precision_recall(x * torch.inf, x), "features: got values that are not finite"),
        (lambda x: merge(moments(x), moments(x[:, :4])), "features: got widths 5 and 4; allowed: equal ones"),
        (lambda x: fid(moments(x), moments(x[:, :4])), "features: got widths 5 and 4; allowed: equal ones"),
        (lambda x: kid(x, x[:, :4], subset_size=3), "features: got widths 5 and 4; allowed: equal ones"),
        (lambda x: precision_recall(x, x[:, :4]), "features: got widths 5 and 4; allowed: equal ones"),
        (lambda x: fid(moments(x[:1]), moments(x)), "fid: got 1 and 6 features; allowed: two or more of each"),
        (lambda x: kid(x, x), "kid: got 100 subsets of 1000 for 6 and 6 features; allowed: "),
        (lambda x: kid(x, x[:4], subset_size=5), "kid: got 100 subsets of 5 for 6 and 4 features; allowed: "),
        (lambda x: kid(x, x, subset_size=1), "kid: got 100 subsets of 1 for 6 and 6 features; allowed: "),
        (lambda x: kid(x, x, subsets=0, subset_size=4), "kid: got 0 subsets of 4 for 6 and 6 features; allowed: "),
        (lambda x: precision_recall(x, x[:3]), "precision_recall: got neighbours=3 for 6 and 3 features; allowed: "),
        (lambda x: precision_recall(x, x, neighbours=0), "precision_recall: got neighbours=0 for 6 and 6 features"),
    ],
)
def test_what_has_no_answer_is_refused(call, says):
    with pytest.raises(ValueError, match=f"^{says}"):
        call(rows(6, 5, 28))


def test_results_are_plain_numbers():
    x = rows(8, 3, 29)
    results = [fid(moments(x), moments(x + 1)), *vars(kid(x, x, subset_size=4)).values()]
    assert all(type(value) is float for value in [*results, *vars(precision_recall(x, x)).values()])
    assert isinstance(kid(x, x, subset_size=4), KernelDistance)
