"""DCI's classifiers over a pool, one for each factor."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from soda_dist.metrics.dci import ROUNDS, FactorFit, Regressor, check_split, fit_factor, stacked
from soda_dist.metrics.factors import Floats
from soda_dist.parallel.pool import Pool, Shared
from soda_dist.parallel.progress import Progress, Say

Split = tuple[NDArray[np.floating], NDArray[np.integer]]
"""Codes [N, D] and factor values [N, K]."""


def fit_factors(
    pool: Pool,
    train: Split,
    test: Split,
    *,
    regressor: Regressor,
    seed: int,
    rounds: int = ROUNDS,
    say: Say,
) -> tuple[Floats, Floats, Floats]:
    """The importances and accuracies that `soda_dist.metrics.dci.scores` takes (section E.3), all factors at once.

    Neither the number of CPUs nor the order of the fits changes a number. A worker has one CPU, or more where the free
    CPUs outnumber the factors.

    Args:
        pool: its other workers should be released, so that their CPUs are free.
        train, test: codes [N, D], finite, and values, integers [N, K]; a test value that training lacks counts as
            wrong.
        regressor, seed, rounds: see `soda_dist.metrics.dci.fit_factor`.

    Returns:
        Importance float64 [D, K], training accuracy [K], test accuracy [K].

    Raises:
        ValueError: a factor with a single training value, codes that are not finite, shapes that do not match.
    """
    check_split(*train, *test)
    factors = train[1].shape[1]
    threads = threads_each(factors, pool.free_cpus()) if regressor == "lightgbm" else 1
    split = [pool.share(array) for array in (*train, *test)]
    fit = partial(_fit_column, regressor=regressor, seed=seed, threads=threads, rounds=rounds)
    order = slowest_first(train[1])
    with pool.with_state(partial(_arrays, split), cpus=threads) as workers:
        fits = workers.map(fit, order, Progress(say, f"DCI by {regressor}", "factors"))
    found = dict(zip(order, fits, strict=True))
    return stacked([found[factor] for factor in range(factors)])


def _arrays(split: Sequence[Shared[NDArray[Any]]], device: str) -> list[NDArray[Any]]:
    return [array.get() for array in split]


def _fit_column(
    split: list[NDArray[Any]], factor: int, *, regressor: Regressor, seed: int, threads: int, rounds: int
) -> FactorFit:
    train_codes, train_values, test_codes, test_values = split
    train, test = np.ascontiguousarray(train_values[:, factor]), np.ascontiguousarray(test_values[:, factor])
    return fit_factor(
        train_codes, train, test_codes, test, regressor=regressor, seed=seed, threads=threads, rounds=rounds
    )


def slowest_first(values: NDArray[np.integer]) -> list[int]:
    """Factors by their number of values, most first: boosting grows a tree for each, and long tasks end late."""
    return sorted(range(values.shape[1]), key=lambda factor: -len(np.unique(values[:, factor])))


def threads_each(tasks: int, cpus: Sequence[int]) -> int:
    """The most threads with which all tasks run at once on nodes of so many CPUs; 1 where they do not even with one."""
    fitting = (
        threads for threads in range(max(cpus, default=1), 1, -1) if sum(node // threads for node in cpus) >= tasks
    )
    return next(fitting, 1)
