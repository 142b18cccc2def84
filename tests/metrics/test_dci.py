"""DCI against closed forms, slow loops over the paper's formulas, and the boosting of scikit-learn."""

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.ensemble import GradientBoostingClassifier

from soda_dist.metrics.dci import Dci, dci, fit_factor, scores, section_scores
from tests.sizes import sized

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

GRID = np.array(list(itertools.product(range(4), repeat=3)))
"""Every combination of three factors of four values: factors are exactly uncorrelated."""


def _noisy(rows: int, seed: int) -> tuple[Floats, Integers]:
    """12 codes: three factors of four values well seen, the same seen badly, and six of noise."""
    generator = np.random.default_rng(seed)
    values = generator.integers(4, size=(rows, 3))
    noise = generator.normal(size=(rows, 12))
    return np.concatenate([values + 0.4 * noise[:, :3], values + 0.8 * noise[:, 3:6], noise[:, 6:]], axis=1), values


def _grid(repeats: int, noise: float, copies: int, seed: int) -> tuple[Floats, Integers]:
    """The grid's values, each factor in `copies` codes with their own noise."""
    values = np.tile(GRID, (repeats, 1))
    codes = np.tile(values, (1, copies)).astype(np.float64)
    return codes + noise * np.random.default_rng(seed).normal(size=codes.shape), values


def _scored(importance: Floats) -> Dci:
    accuracy = np.ones(importance.shape[1])
    return scores(importance, accuracy, accuracy)


def _slow(importance: Floats) -> tuple[float, float]:
    """D and C, one entropy and one weight at a time."""
    codes, factors = importance.shape
    total = importance.sum()
    disentanglement = completeness = 0.0
    for i in range(codes):
        row = importance[i].sum()
        entropy = -sum(r / row * math.log(r / row, factors) for r in importance[i] if r > 0)
        disentanglement += row / total * (1.0 - entropy)
    for j in range(factors):
        column = importance[:, j].sum()
        entropy = -sum(r / column * math.log(r / column, codes) for r in importance[:, j] if r > 0)
        completeness += column / total * (1.0 - entropy)
    return disentanglement, completeness


def test_scores_equal_the_formulas_one_entropy_at_a_time() -> None:
    importance = np.random.default_rng(0).gamma(0.3, size=(9, 4)) * np.array([1.0, 5.0, 0.2, 1.0])
    importance[2, 1] = 0.0
    result = scores(importance, np.array([0.9, 0.8, 0.7, 1.0]), np.array([0.5, 0.25, 0.75, 0.5]))
    assert (result.disentanglement, result.completeness) == pytest.approx(_slow(importance), abs=1e-12)
    assert result.informativeness_train == pytest.approx(0.85)
    assert result.informativeness_test == pytest.approx(0.5)


def test_one_code_a_factor_is_perfect_and_spread_importance_is_not() -> None:
    perfect, spread = _scored(np.eye(5)[[3, 1, 0, 4, 2]]), _scored(np.ones((6, 3)))
    assert (perfect.disentanglement, perfect.completeness) == pytest.approx((1.0, 1.0))
    assert (spread.disentanglement, spread.completeness) == pytest.approx((0.0, 0.0), abs=1e-12)


def test_factors_held_by_two_codes_each_lose_completeness_alone() -> None:
    result = _scored(np.concatenate([np.eye(5), np.eye(5)]))
    assert result.disentanglement == pytest.approx(1.0)
    assert result.completeness == pytest.approx(1.0 - math.log(2) / math.log(10))


def test_codes_that_hold_two_factors_each_lose_disentanglement_alone() -> None:
    result = _scored(np.repeat(np.eye(2), 2, axis=1))
    assert result.disentanglement == pytest.approx(1.0 - math.log(2) / math.log(4))
    assert result.completeness == pytest.approx(1.0)


def test_codes_without_importance_weigh_nothing_but_widen_the_base() -> None:
    half = np.array([[1.0, 0.0], [1.0, 2.0], [0.0, 0.0], [0.0, 0.0]])
    result = _scored(half)
    second = 1.0 - (math.log(3) - 2 / 3 * math.log(2)) / math.log(2)
    assert result.by_code.tolist() == pytest.approx([1.0, second, 0.0, 0.0])
    assert result.disentanglement == pytest.approx((1.0 + 3.0 * second) / 4.0)
    assert result.by_factor.tolist() == pytest.approx([0.5, 1.0])
    assert result.completeness == pytest.approx(0.75)


def test_a_single_factor_or_code_is_perfect_if_it_matters_and_nothing_scores_zero() -> None:
    one_factor, one_code = _scored(np.array([[1.0], [1.0], [0.0]])), _scored(np.array([[1.0, 1.0]]))
    assert (one_factor.disentanglement, one_factor.by_code.tolist()) == (1.0, [1.0, 1.0, 0.0])
    assert one_factor.completeness == pytest.approx(1.0 - math.log(2) / math.log(3))
    assert (one_code.completeness, one_code.disentanglement) == (1.0, pytest.approx(0.0))
    nothing = _scored(np.zeros((3, 2)))
    assert (nothing.disentanglement, nothing.completeness) == (0.0, 0.0)


def test_sections_count_as_codes() -> None:
    importance = np.random.default_rng(1).gamma(0.5, size=(7, 3))
    bounds = [(0, 2), (2, 3), (3, 7)]
    summed = np.array([sum(importance[row] for row in range(*section)) for section in bounds])
    result = section_scores(importance, bounds)
    assert (result.disentanglement, result.completeness) == pytest.approx(_slow(summed))
    np.testing.assert_allclose(result.share, [[s / sum(column) for s, column in zip(r, summed.T)] for r in summed])


def test_a_factor_within_one_section_is_complete_however_many_codes_hold_it() -> None:
    importance = np.zeros((8, 2))
    importance[:4, 0] = importance[4:, 1] = 0.25
    result = section_scores(importance, [(0, 4), (4, 8)])
    assert (result.disentanglement, result.completeness) == (1.0, 1.0)
    assert result.share.tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert _scored(importance).completeness == pytest.approx(1.0 - math.log(4) / math.log(8))
    importance[:, 1] = 0.0
    assert section_scores(importance, [(0, 4), (4, 8)]).share[:, 1].tolist() == [0.0, 0.0]


def test_one_section_holds_every_factor_whole_and_tells_none_apart() -> None:
    result = section_scores(np.eye(4), [(0, 4)])
    assert result.share.tolist() == [[1.0] * 4]
    assert (result.disentanglement, result.completeness) == (pytest.approx(0.0), 1.0)


@pytest.mark.parametrize(
    "bounds", [[(0, 4), (5, 8)], [(0, 4), (4, 4), (4, 8)], [(0, 4), (3, 8)], [(0, 4)], [(4, 8), (0, 4)], []]
)
def test_sections_must_partition_the_codes(bounds: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match=r"bounds: got .*from 0 to 8"):
        section_scores(np.ones((8, 2)), bounds)


@sized("size", (500, 50), long=(1500, 100))
def test_lightgbm_scores_within_two_hundredths_of_scikit_learn(size: tuple[int, int]) -> None:
    rows, rounds = size
    train, test = _noisy(rows, seed=0), _noisy(1000, seed=1)
    result = dci(*train, *test, regressor="lightgbm", seed=0, threads=1, rounds=rounds)
    boosting = [GradientBoostingClassifier(n_estimators=rounds, random_state=0) for _ in range(3)]
    models = [model.fit(train[0], factor) for model, factor in zip(boosting, train[1].T, strict=True)]
    expected = _slow(np.array([np.abs(model.feature_importances_) for model in models]).T)
    assert (result.disentanglement, result.completeness) == pytest.approx(expected, abs=0.02)
    for codes, values, informativeness in (
        (*train, result.informativeness_train),
        (*test, result.informativeness_test),
    ):
        right = np.mean([model.score(codes, factor) for model, factor in zip(models, values.T)])
        assert informativeness == pytest.approx(right, abs=0.01)


def _entangled(rows: int, seed: int) -> tuple[Floats, Integers]:
    """64 codes: five factors, one of them rare, each in ten codes of its own and a little in others; a third bent."""
    generator, fixed = np.random.default_rng(seed), np.random.default_rng(5)
    values = np.stack(
        [*(generator.integers(levels, size=rows) for levels in (4, 3, 2, 2)), generator.random(rows) < 0.15], axis=1
    ).astype(np.int64)
    mixture = fixed.normal(size=(5, 64)) * 0.25 * (fixed.random((5, 64)) < 0.3)
    mixture[np.arange(50) % 5, np.arange(50)] += fixed.uniform(0.2, 1.5, size=50)
    codes = (values - values.mean(axis=0)) / values.std(axis=0) @ mixture + generator.normal(size=(rows, 64))
    codes[:, ::3] = np.tanh(codes[:, ::3])
    return codes, values


@sized("size", (600, 20), long=(2000, 100))
def test_lightgbm_scores_within_two_hundredths_of_scikit_learn_on_mixed_and_redundant_codes(
    size: tuple[int, int],
) -> None:
    rows, rounds = size
    split = *_entangled(rows, seed=0), *_entangled(rows, seed=1)
    ours, theirs = (dci(*split, regressor=name, seed=0, threads=1, rounds=rounds) for name in ("lightgbm", "sklearn"))
    for field in ("disentanglement", "completeness", "informativeness_train", "informativeness_test"):
        assert getattr(ours, field) == pytest.approx(getattr(theirs, field), abs=0.02)


@pytest.mark.parametrize("classes", [2, 3])
def test_lightgbm_finds_the_importances_of_scikit_learn_where_bins_hold_one_row(classes: int) -> None:
    (train, values), (test, truth) = _noisy(600, seed=2), _noisy(600, seed=3)
    values, truth = (np.minimum(each[:, 0], classes - 1) for each in (values, truth))
    fits = [
        fit_factor(train, values, test, truth, regressor=name, seed=0, threads=1, rounds=40)
        for name in ("lightgbm", "sklearn")
    ]
    np.testing.assert_allclose(fits[0].importance, fits[1].importance, atol=0.006)
    assert fits[0].importance.sum() == pytest.approx(1.0)
    assert fits[0].train_accuracy == pytest.approx(fits[1].train_accuracy, abs=0.007)
    assert fits[0].test_accuracy == pytest.approx(fits[1].test_accuracy, abs=0.02)


def test_one_round_is_the_tree_of_scikit_learn() -> None:
    """Without the codes that see well, whose equal splits the two choose between by lot."""
    (train, values), (test, truth) = _noisy(600, seed=4), _noisy(600, seed=5)
    train, test = train[:, 3:], test[:, 3:]
    fits = [
        fit_factor(train, values[:, 1], test, truth[:, 1], regressor=name, seed=0, threads=1, rounds=1)
        for name in ("lightgbm", "sklearn")
    ]
    np.testing.assert_allclose(fits[0].importance, fits[1].importance, atol=1e-5)
    assert (fits[0].train_accuracy, fits[0].test_accuracy) == (fits[1].train_accuracy, fits[1].test_accuracy)


@pytest.mark.parametrize("regressor", ["lightgbm", "sklearn", "lasso"])
def test_perfect_codes_score_one_and_turned_codes_do_not(regressor: str) -> None:
    (train, values), (test, truth) = _grid(6, 0.0, 1, seed=0), _grid(3, 0.0, 1, seed=0)
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    settings = {"regressor": regressor, "seed": 0, "threads": 1, "rounds": 20}
    result = dci(train, values, test, truth, **settings)
    assert (result.disentanglement, result.completeness) == pytest.approx((1.0, 1.0), abs=1e-6)
    assert (result.informativeness_train, result.informativeness_test) == (1.0, 1.0)
    turned = dci(train @ turn, values, test @ turn, truth, **settings)
    assert turned.disentanglement < 0.5
    assert turned.completeness < 0.5


@pytest.mark.parametrize("regressor", ["lightgbm", "lasso"])
def test_codes_of_noise_score_near_zero_and_predict_by_chance(regressor: str) -> None:
    generator = np.random.default_rng(0)
    train, test = generator.normal(size=(900, 8)), generator.normal(size=(900, 8))
    values, truth = generator.integers(3, size=(900, 2)), generator.integers(3, size=(900, 2))
    result = dci(train, values, test, truth, regressor=regressor, seed=0, threads=1, rounds=30)
    assert result.informativeness_test == pytest.approx(1 / 3, abs=0.05)
    if regressor == "lightgbm":
        assert result.disentanglement < 0.1
        assert result.completeness < 0.1
    else:
        assert result.importance.max() < 0.1


def test_lasso_shrinks_the_one_code_that_is_the_factor_by_alpha() -> None:
    values = np.tile([3, 5, 9, 12], 10)
    code = 7.0 - 2.0 * np.searchsorted([3, 5, 9, 12], values)[:, None]
    fit = fit_factor(code, values, code, values, regressor="lasso", seed=0, threads=1)
    assert fit.importance[0] == pytest.approx(1.0 - 0.02, abs=1e-6)


def test_lasso_shares_a_factor_between_two_views_of_it() -> None:
    train, values = _grid(30, 0.3, 2, seed=0)
    test, truth = _grid(10, 0.3, 2, seed=1)
    result = dci(train, values, test, truth, regressor="lasso", seed=0, threads=1)
    assert result.disentanglement > 0.95
    assert result.completeness == pytest.approx(1.0 - math.log(2) / math.log(6), abs=0.03)
    np.testing.assert_allclose(result.importance[:3], result.importance[3:], atol=0.05)


@pytest.mark.parametrize("regressor", ["lightgbm", "lasso"])
def test_scale_and_offset_of_codes_and_names_of_values_do_not_matter(regressor: str) -> None:
    train, values = _noisy(400, seed=6)
    settings = {"regressor": regressor, "seed": 0, "threads": 1, "rounds": 5}
    scale, offset = np.array([64.0, 0.25] * 6), np.array([0.0, 2.0] * 6)
    names = np.array([-7, 3, 4, 90])
    plain = fit_factor(train, values[:, 0], train, values[:, 0], **settings)
    other = fit_factor(
        train * scale + offset, names[values[:, 0]], train * scale + offset, names[values[:, 0]], **settings
    )
    np.testing.assert_allclose(other.importance, plain.importance, atol=1e-6)
    assert other.train_accuracy == plain.train_accuracy == other.test_accuracy


def test_lightgbm_gives_the_same_with_more_threads_and_any_seed() -> None:
    train, values = _noisy(300, seed=7)
    one, two = (
        fit_factor(train, values[:, 0], train, values[:, 0], regressor="lightgbm", seed=s, threads=s, rounds=10)
        for s in (1, 2)
    )
    np.testing.assert_array_equal(one.importance, two.importance)


@pytest.mark.parametrize("regressor", ["lightgbm", "sklearn", "lasso"])
def test_constant_codes_matter_nothing_and_predict_without_failing(regressor: str) -> None:
    codes, values = np.ones((40, 3)), np.repeat([0, 1, 1, 1], 10)
    fit = fit_factor(codes, values, codes, values, regressor=regressor, seed=0, threads=1, rounds=5)
    assert fit.importance.tolist() == [0.0, 0.0, 0.0]
    assert fit.train_accuracy == fit.test_accuracy == 0.75


@pytest.mark.parametrize("regressor", ["lightgbm", "sklearn", "lasso"])
def test_values_never_trained_on_count_as_wrong(regressor: str) -> None:
    codes, values = _grid(4, 0.0, 1, seed=0)
    truth = np.where(np.arange(len(values)) % 4 == 0, 9, values[:, 0])
    fit = fit_factor(codes, values[:, 0], codes, truth, regressor=regressor, seed=0, threads=1, rounds=20)
    assert (fit.train_accuracy, fit.test_accuracy) == (1.0, 0.75)


def test_each_factor_fits_alone_as_it_does_in_the_loop() -> None:
    train, values = _noisy(200, seed=8)
    settings = {"regressor": "lightgbm", "seed": 0, "threads": 1, "rounds": 5}
    whole = dci(train, values, train[:50], values[:50], **settings)
    fits = [fit_factor(train, values[:, j], train[:50], values[:50, j], **settings) for j in range(3)]
    np.testing.assert_array_equal(whole.importance, np.array([fit.importance for fit in fits]).T)
    assert whole.informativeness_test == pytest.approx(sum(fit.test_accuracy for fit in fits) / 3)
    assert whole.informativeness_train == pytest.approx(sum(fit.train_accuracy for fit in fits) / 3)


def test_what_cannot_be_scored_is_refused_by_name() -> None:
    codes, values = _noisy(20, seed=0)
    settings = {"regressor": "lasso", "seed": 0, "threads": 1}
    single = values.copy()
    single[:, 1] = 3
    with pytest.raises(ValueError, match="train_values: got the single value 3 for factor 1"):
        dci(codes, single, codes, values, **settings)
    with pytest.raises(ValueError, match="test_values: got 2 factors; allowed: 3"):
        dci(codes, values, codes, values[:, :2], **settings)
    with pytest.raises(ValueError, match="test_codes: got 11 codes; allowed: 12"):
        dci(codes, values, codes[:, :11], values, **settings)
    with pytest.raises(ValueError, match=r"train_values: got int64 \[19, 3\]; allowed: integers \[20, K\]"):
        dci(codes, values[:19], codes, values, **settings)
    broken = codes.copy()
    broken[4, 5] = np.nan
    with pytest.raises(ValueError, match="test_codes: got values that are not finite in code 5"):
        dci(codes, values, broken, values, **settings)
    with pytest.raises(ValueError, match="regressor: got 'forest'; allowed: lightgbm, sklearn, lasso"):
        dci(codes, values, codes, values, regressor="forest", seed=0, threads=1)
    with pytest.raises(ValueError, match="not negative"):
        _scored(np.array([[1.0, -0.5]]))
    with pytest.raises(ValueError, match=r"got \[3\] and \[2\]; allowed: \[2\]"):
        scores(np.ones((4, 2)), np.ones(3), np.ones(2))
