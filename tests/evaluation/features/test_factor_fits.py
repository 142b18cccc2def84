"""DCI's fits over a pool give the loop's numbers on any number of CPUs."""

import numpy as np
import pytest

from soda_dist.evaluation.features.factor_fits import fit_factors, slowest_first, threads_each
from soda_dist.metrics.dci import Dci, dci
from soda_dist.parallel.local_pool import LocalPool
from soda_dist.parallel.pool import Setup
from soda_dist.parallel.progress import silent
from tests.evaluation.scattered_pool import ScatteredPool


def _split(rows: int = 160) -> tuple[np.ndarray, ...]:
    """Three factors of 2, 5 and 3 values in 6 codes with noise."""
    generator = np.random.default_rng(0)
    values = np.stack([generator.integers(levels, size=2 * rows) for levels in (2, 5, 3)], axis=1)
    codes = np.concatenate([values, values[:, ::-1]], axis=1) + generator.normal(size=(2 * rows, 6))
    return codes[:rows], values[:rows], codes[rows:], values[rows:]


def _two_factors() -> tuple[np.ndarray, ...]:
    train, values, test, truth = _split()
    return train, values[:, 1:], test, truth[:, 1:]


CASES = {
    ("lightgbm", 3): _split(),
    ("lightgbm", 2): _two_factors(),  # on 4 CPUs each has two threads
    ("sklearn", 3): _split(),
    ("lasso", 2): _two_factors(),
}


class Cpus(LocalPool):
    """Says that so many CPUs are free, and notes how many its workers would get."""

    def __init__(self, cpus: int) -> None:
        super().__init__()
        self.cpus, self.given = cpus, list[int | None]()

    def free_cpus(self) -> list[int]:
        return [self.cpus]

    def with_state(self, setup: Setup, *, cpus: int | None = None) -> LocalPool:
        self.given.append(cpus)
        return ScatteredPool(self.cpus, setup)


@pytest.fixture(scope="module")
def wholes() -> dict[tuple[str, int], Dci]:
    """What the loop finds, by regressor and number of factors."""
    return {case: dci(*given, regressor=case[0], seed=3, threads=1, rounds=6) for case, given in CASES.items()}


@pytest.mark.parametrize(("cpus", "threads"), [(1, [1, 1, 1, 1]), (2, [1, 1, 1, 1]), (4, [1, 2, 1, 1])])
def test_any_number_of_cpus_gives_the_numbers_of_the_loop(cpus: int, threads: list[int], wholes: dict) -> None:
    """In any order of the fits; the linear ones have no threads."""
    said, pool = list[str](), Cpus(cpus)
    for (regressor, factors), given in CASES.items():
        importance, train, test = fit_factors(
            pool, given[:2], given[2:], regressor=regressor, seed=3, rounds=6, say=said.append
        )
        whole = wholes[regressor, factors]
        np.testing.assert_array_equal(importance, whole.importance)
        assert importance.shape == (6, factors)
        assert (train.mean(), test.mean()) == (whole.informativeness_train, whole.informativeness_test)
        assert len(set(train)) > 1, "equal accuracies would not tell factors apart"
    assert pool.given == threads
    assert "DCI by lightgbm: 3 of 3 factors" in said and "DCI by lasso: 2 of 2 factors" in said


def test_what_cannot_be_scored_is_refused_before_any_work() -> None:
    train, values, test, truth = _split(20)
    values, pool = values * np.array([1, 0, 1]), Cpus(1)
    with pytest.raises(ValueError, match="train_values: got the single value 0 for factor 1"):
        fit_factors(pool, (train, values), (test, truth), regressor="lightgbm", seed=0, say=silent)
    assert pool.given == []


def test_factors_of_many_values_go_first() -> None:
    assert slowest_first(_split()[1]) == [1, 2, 0]


@pytest.mark.parametrize(
    ("tasks", "cpus", "threads"),
    [
        (10, [2], 1),
        (1, [2], 2),
        (3, [8], 2),
        (3, [8, 8], 4),  # two on one node, one on the other: five each would leave one waiting
        (1, [8, 8], 8),
        (2, [3, 5], 3),
        (1, [], 1),
        (1, [0], 1),
    ],
)
def test_threads_fill_the_nodes_and_leave_no_task_waiting(tasks: int, cpus: list[int], threads: int) -> None:
    assert threads_each(tasks, cpus) == threads
