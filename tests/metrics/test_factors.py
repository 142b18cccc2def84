"""MIG, SAP, modularity and the FactorVAE score against slow loops, scikit-learn, closed forms and chance."""

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import mutual_info_score
from sklearn.svm import LinearSVC

from soda_dist.metrics import factors
from soda_dist.metrics.factors import code_accuracy, factor_vae, mig, modularity, mutual_information, sap

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

GRID = np.tile(list(itertools.product(range(4), repeat=3)), (4, 1))
"""Every combination of three factors of four values, so that factors tell nothing about one another."""
VOTES = {"train_votes": 800, "eval_votes": 600, "batch": 32}


def _mixed(rows: int, codes: int, seed: int) -> tuple[Floats, Integers]:
    """Codes that mix a factor of five values, an even and a rare one of two, and noise."""
    generator = np.random.default_rng(seed)
    values = np.stack(
        [generator.integers(5, size=rows), generator.integers(2, size=rows), generator.random(rows) < 0.15], axis=1
    ).astype(np.int64)
    mixture = np.random.default_rng(99).normal(size=(3, codes))
    return values @ mixture + generator.normal(size=(rows, codes)) + 1.0, values


def _slow_information(codes: Floats, values: Integers) -> Floats:
    table = np.zeros((codes.shape[1], values.shape[1]))
    for i, j in np.ndindex(table.shape):
        edges = np.histogram(codes[:, i], 20)[1][:-1]
        table[i, j] = mutual_info_score(values[:, j], np.digitize(codes[:, i], edges))
    return table


def test_information_equals_scikit_learn_code_by_code_across_blocks() -> None:
    codes, values = _mixed(200, 300, seed=0)
    codes[:, 257] = np.arange(200) % 21  # 21 numbers on the edges of 20 bins
    chosen = [0, 1, 255, 256, 257, 299]
    table = mutual_information(codes, values)
    np.testing.assert_allclose(table[chosen], _slow_information(codes[:, chosen], values), atol=1e-12)


def test_mig_equals_the_slow_loop() -> None:
    codes, values = _mixed(500, 6, seed=1)
    gaps = []
    for column, factor in zip(_slow_information(codes, values).T, values.T):
        first, second = sorted(column)[-1], sorted(column)[-2]
        shares = [float(np.mean(factor == value)) for value in set(factor.tolist())]
        gaps.append((first - second) / -sum(share * math.log(share) for share in shares))
    assert mig(codes, values) == pytest.approx(sum(gaps) / 3, abs=1e-12)
    assert mig(codes.astype(np.float32), values) == pytest.approx(sum(gaps) / 3, abs=0.01)


def test_mig_of_perfect_duplicated_and_useless_codes() -> None:
    codes = GRID.astype(np.float64)
    assert mig(codes, GRID) == pytest.approx(1.0)
    assert mig(codes[:, [2, 0, 1]] * -3.0 + 7.0, GRID) == pytest.approx(1.0)
    assert mig(np.concatenate([codes, codes], axis=1), GRID) == pytest.approx(0.0, abs=1e-12)
    noise = np.random.default_rng(0).normal(size=(5000, 5))
    assert mig(noise, np.random.default_rng(1).integers(4, size=(5000, 2))) < 0.01


def test_modularity_equals_the_slow_loop_and_counts_a_constant_code_as_zero() -> None:
    codes, values = _mixed(500, 6, seed=2)
    codes[:, 4] = 0.3
    modular = []
    for row in _slow_information(codes, values):
        best = max(row)
        modular.append(1.0 - (sum(m * m for m in row) - best**2) / (best**2 * 2) if best > 0 else 0.0)
    assert modular[4] == 0.0
    assert modularity(codes, values) == pytest.approx(sum(modular) / 6, abs=1e-12)


def test_modularity_ignores_how_many_codes_hold_a_factor_but_not_how_many_factors_a_code_holds() -> None:
    codes = GRID.astype(np.float64)
    assert modularity(np.concatenate([codes, codes], axis=1), GRID) == pytest.approx(1.0)
    both = (4 * codes[:, :1] + codes[:, 1:2]) @ np.ones((1, 2))  # 16 values, all apart in 20 bins
    assert modularity(both, GRID) == pytest.approx(1.0 - 1 / 2)


def test_accuracy_of_single_codes_equals_linear_svc() -> None:
    (train, values), (test, truth) = _mixed(300, 5, seed=3), _mixed(400, 5, seed=4)
    train[:, 3], test[:, 3] = 0.02 * train[:, 3], 0.02 * test[:, 3]
    train[:, 4], test[:, 4] = 50.0 * train[:, 4], 50.0 * test[:, 4]
    expected = np.zeros((5, 3))
    for i, j in np.ndindex(expected.shape):
        machine = LinearSVC(C=0.01, class_weight="balanced").fit(train[:, [i]], values[:, j])
        expected[i, j] = machine.score(test[:, [i]], truth[:, j])
    np.testing.assert_allclose(code_accuracy(train, values, test, truth), expected, atol=0.0051)  # two rows of 400
    best = np.sort(expected, axis=0)
    assert sap(train, values, test, truth) == pytest.approx(float(np.mean(best[-1] - best[-2])), abs=0.005)


def test_sap_of_perfect_duplicated_and_useless_codes() -> None:
    generator = np.random.default_rng(0)
    values = generator.integers(2, size=(2000, 2))
    codes = 4.0 * values + 0.1 * generator.normal(size=values.shape) - 2.0
    noise = generator.normal(size=(2000, 2))
    half = slice(0, 1000), slice(1000, 2000)
    for given, expected in ((codes, 0.5), (np.concatenate([codes, codes], axis=1), 0.0), (noise, 0.0)):
        (train, test), (labels, truth) = ((each[half[0]], each[half[1]]) for each in (given, values))
        assert sap(train, labels, test, truth) == pytest.approx(expected, abs=0.05)


def test_sap_of_a_constant_code_and_of_values_never_trained_on() -> None:
    values = np.repeat([[0], [5]], 20, axis=0)
    codes = np.stack([values[:, 0] - 2.5, np.full(40, 0.7)], axis=1)
    accuracy = code_accuracy(codes, values, codes, np.where(np.arange(40)[:, None] == 39, 8, values))
    assert accuracy[0, 0] == 39 / 40
    assert accuracy[1, 0] in {19 / 40, 20 / 40}


def test_factor_vae_is_perfect_for_perfect_codes_whatever_their_scale_or_order() -> None:
    codes = GRID[:, [2, 0, 1]] * np.array([1.0, 100.0, 0.3]) + np.array([50.0, 0.0, 0.0])
    assert factor_vae(codes, GRID, seed=0, **VOTES) == 1.0
    assert factor_vae(np.concatenate([codes, codes], axis=1), GRID, seed=0, **VOTES) == 1.0


def test_factor_vae_is_near_chance_for_noise_on_votes_that_the_match_did_not_see() -> None:
    noise = np.random.default_rng(0).normal(size=(3000, 150))
    values = np.random.default_rng(1).integers(4, size=(3000, 3))
    score = factor_vae(noise, values, seed=0, train_votes=300, eval_votes=3000, batch=16)
    assert score == pytest.approx(1 / 3, abs=0.06)


def test_factor_vae_tells_codes_at_one_place_of_different_blocks_apart() -> None:
    codes = np.random.default_rng(2).normal(size=(len(GRID), 300))
    codes[:, 5], codes[:, 7], codes[:, 256 + 5] = GRID.T
    assert factor_vae(codes, GRID, seed=0, **VOTES) == 1.0
    codes[:, 3], codes[:, 270] = 0.4, 1e-3 * codes[:, 270]
    assert factor_vae(codes, GRID, seed=0, **VOTES) == 1.0


def test_factor_vae_holds_values_as_often_as_rows_have_them() -> None:
    """The first code is still for a quarter of the first factor's rows; all other votes name the second code.

    So the first code tells the first factor, in 1/8 of the votes, and the second code the second factor, in 1/2.
    """
    generator = np.random.default_rng(3)
    values = np.stack([np.arange(4000) % 4 > 0, generator.integers(2, size=4000)], axis=1).astype(np.int64)
    codes = values * np.stack([generator.choice([-1.0, 1.0], size=4000), np.ones(4000)], axis=1)
    score = factor_vae(codes, values, seed=0, train_votes=1000, eval_votes=6000)
    assert score == pytest.approx(0.625, abs=0.02)  # three standard errors


def test_factor_vae_leaves_out_codes_below_the_threshold() -> None:
    codes = GRID * 0.01
    assert factor_vae(codes, GRID, seed=0, **VOTES) == 0.0
    assert factor_vae(codes, GRID, seed=0, threshold=0.005, **VOTES) == 1.0
    codes[:, 0] *= 100.0
    assert factor_vae(codes, GRID, seed=0, **VOTES) == pytest.approx(1 / 3, abs=0.08)


def test_factor_vae_agrees_with_the_slow_loop_on_entangled_codes() -> None:
    codes, values = _mixed(600, 6, seed=5)
    score = factor_vae(codes, values, seed=0, train_votes=1500, eval_votes=1500, batch=16)
    generator = np.random.default_rng(7)
    spread = codes.var(axis=0, ddof=1)
    votes = []
    for _ in range(3000):
        factor = generator.integers(3)
        rows = np.flatnonzero(values[:, factor] == values[generator.integers(600), factor])
        batch = codes[generator.choice(rows, size=16)]
        votes.append((factor, int(np.argmin(batch.var(axis=0, ddof=1) / spread))))
    table = np.zeros((6, 3))
    for factor, code in votes[:1500]:
        table[code, factor] += 1
    slow = float(np.mean([table[code].argmax() == factor for factor, code in votes[1500:]]))
    assert 0.45 < slow < 0.95
    assert score == pytest.approx(slow, abs=0.05)  # three standard errors of their difference


def test_factor_vae_repeats_with_its_seed_alone() -> None:
    codes, values = _mixed(300, 6, seed=6)
    first, again, other = (factor_vae(codes, values, seed=seed, **VOTES) for seed in (0, 0, 1))
    assert first == again != other


def test_a_value_of_one_row_is_never_held_and_a_factor_of_such_values_is_refused() -> None:
    codes, values = GRID.astype(np.float64), GRID.copy()
    values[0, 0] = 17
    assert factor_vae(codes, values, seed=0, train_votes=3000, eval_votes=3000, batch=16) == 1.0
    with pytest.raises(ValueError, match="values: got no value of factor 1 twice"):
        factor_vae(codes, np.stack([values[:, 0], np.arange(len(values))], axis=1), seed=0, **VOTES)


def test_what_cannot_be_scored_is_refused_by_name() -> None:
    codes, values = GRID.astype(np.float64), GRID.copy()
    with pytest.raises(ValueError, match="codes: got 256 rows of 1; allowed: 2 or more of 2 or more"):
        mig(codes[:, :1], values)
    with pytest.raises(ValueError, match="codes: got 1 code"):
        sap(codes[:, :1], values, codes[:, :1], values)
    with pytest.raises(ValueError, match="values: got 1 factor; allowed: 2 or more"):
        modularity(codes, values[:, :1])
    with pytest.raises(ValueError, match="test: got 2 codes and 3 factors; allowed: 3 and 3"):
        sap(codes, values, codes[:, :2], values)
    with pytest.raises(ValueError, match=r"values: got float64 \[256, 3\]; allowed: integers"):
        factor_vae(codes, codes, seed=0)
    values[:, 2] = 1
    with pytest.raises(ValueError, match="values: got the single value 1 for factor 2"):
        mig(codes, values)
    codes[9, 1] = np.inf
    with pytest.raises(ValueError, match="codes: got values that are not finite in code 1"):
        modularity(codes, values)


def test_a_code_that_does_not_vary_takes_no_part_at_any_threshold() -> None:
    codes = np.concatenate([np.full((len(GRID), 1), 0.25), GRID.astype(np.float64)], axis=1)
    assert factor_vae(codes, GRID, seed=0, threshold=0.0, **VOTES) == 1.0


def test_a_machine_that_is_not_at_its_minimum_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    codes, values = _mixed(100, 2, seed=8)
    monkeypatch.setattr(factors, "SVM_ITERATIONS", 1)
    with pytest.raises(ArithmeticError, match="no minimum within 1 steps"):
        sap(codes, values, codes, values)
