"""DCI's classifiers as Ray tasks, one a factor."""

from collections.abc import Sequence

import numpy as np
import ray
from numpy.typing import NDArray

from soda_dist.distributed.runtime.farm import farm_out
from soda_dist.distributed.runtime.ray_internals import free_cpus
from soda_dist.metrics.dci import ROUNDS, FactorFit, Regressor, check_split, fit_factor, stacked
from soda_dist.metrics.factors import Floats
from soda_dist.parallel.progress import Progress, Say


def fit_factors(
    train_codes: NDArray[np.floating],
    train_values: NDArray[np.integer],
    test_codes: NDArray[np.floating],
    test_values: NDArray[np.integer],
    *,
    regressor: Regressor,
    seed: int,
    rounds: int = ROUNDS,
    say: Say,
) -> tuple[Floats, Floats, Floats]:
    """The importances and accuracies that `soda_dist.metrics.dci.scores` takes (section E.3), all factors at once.

    The arrays are put into the object store once; a task whose worker dies is run again. Neither the number of CPUs
    nor the order of the tasks changes a number. A task has one CPU, or more where the free CPUs outnumber the factors.

    Args:
        train_codes: [N, D], test_codes: [M, D], finite.
        train_values: integers [N, K], test_values: [M, K]; a test value that training lacks counts as wrong.
        regressor, seed, rounds: see `soda_dist.metrics.dci.fit_factor`.

    Returns:
        Importance float64 [D, K], training accuracy [K], test accuracy [K].

    Raises:
        ValueError: a factor with a single training value, codes that are not finite, shapes that do not match.
    """
    check_split(train_codes, train_values, test_codes, test_values)
    factors = train_values.shape[1]
    threads = threads_each(factors, free_cpus()) if regressor == "lightgbm" else 1
    split = [ray.put(array) for array in (train_codes, train_values, test_codes, test_values)]
    order = slowest_first(train_values)
    progress = Progress(say, f"DCI by {regressor}", "factors", factors)
    calls = ((*split, factor, regressor, seed, threads, rounds) for factor in order)
    fits: dict[int, FactorFit] = {}
    for number, fit in farm_out(_fit_column, calls, progress.tick, cpus=threads):
        fits[order[number]] = fit
        progress.add(1)
    progress.close()
    return stacked([fits[factor] for factor in range(factors)])


def _fit_column(
    train_codes: NDArray[np.floating],
    train_values: NDArray[np.integer],
    test_codes: NDArray[np.floating],
    test_values: NDArray[np.integer],
    factor: int,
    regressor: Regressor,
    seed: int,
    threads: int,
    rounds: int,
) -> FactorFit:
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
