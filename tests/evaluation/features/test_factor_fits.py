"""DCI's tasks give the loop's numbers on any number of CPUs, and when a worker is lost."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import psutil
import pytest
import ray

from soda_dist.distributed.runtime.farm import farm_out
from soda_dist.evaluation.features.factor_fits import fit_factors, slowest_first, threads_each
from soda_dist.metrics.dci import dci


def _split(rows: int = 160) -> tuple[np.ndarray, ...]:
    """Three factors of 2, 5 and 3 values in 6 codes with noise."""
    generator = np.random.default_rng(0)
    values = np.stack([generator.integers(levels, size=2 * rows) for levels in (2, 5, 3)], axis=1)
    codes = np.concatenate([values, values[:, ::-1]], axis=1) + generator.normal(size=(2 * rows, 6))
    return codes[:rows], values[:rows], codes[rows:], values[rows:]


@contextmanager
def _cluster(cpus: int) -> Iterator[None]:
    ray.shutdown()  # of the modules' common cluster; it is started anew for the next of them
    ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        yield
    finally:
        ray.shutdown()


def _assigned() -> float:
    return ray.get_runtime_context().get_assigned_resources()["CPU"]


@pytest.mark.ray
@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_any_number_of_cpus_gives_the_numbers_of_the_loop(cpus: int) -> None:
    split, said = _split(), list[str]()
    two = split[0], split[1][:, 1:], split[2], split[3][:, 1:]  # two factors: on 4 CPUs each has two threads
    with _cluster(cpus):
        fitted = {
            (regressor, len(given[1].T)): fit_factors(*given, regressor=regressor, seed=3, rounds=6, say=said.append)
            for regressor, given in (("lightgbm", split), ("lightgbm", two), ("sklearn", split), ("lasso", two))
        }
        assert {cpu for _, cpu in farm_out(_assigned, [()] * 3, lambda: None)} == {1}
        assert {cpu for _, cpu in farm_out(_assigned, [()] * 3, lambda: None, cpus=cpus)} == {cpus}
    for (regressor, factors), (importance, train, test) in fitted.items():
        given = split if factors == 3 else two
        whole = dci(*given, regressor=regressor, seed=3, threads=1, rounds=6)
        np.testing.assert_array_equal(importance, whole.importance)
        assert importance.shape == (6, factors)
        assert (train.mean(), test.mean()) == (whole.informativeness_train, whole.informativeness_test)
        assert len(set(train)) > 1, "equal accuracies would not tell factors apart"
    assert "DCI by lightgbm: 3 of 3 factors" in said and "DCI by lasso: 2 of 2 factors" in said


@pytest.mark.ray
def test_a_worker_that_is_killed_while_it_fits_is_replaced() -> None:
    split, killed, over = _split(1500), list[int](), threading.Event()

    def kill_one() -> None:
        while not over.is_set() and not killed:
            for process in psutil.Process().children(recursive=True):
                if process.name().startswith("ray::_fit_col"):
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append(process.pid)
                    break
            time.sleep(0.01)

    with _cluster(2):
        killer = threading.Thread(target=kill_one)
        killer.start()
        try:
            importance, train, _ = fit_factors(*split, regressor="lightgbm", seed=0, rounds=40, say=lambda _: None)
        finally:
            over.set()
            killer.join()
    assert len(killed) == 1
    whole = dci(*split, regressor="lightgbm", seed=0, threads=1, rounds=40)
    np.testing.assert_array_equal(importance, whole.importance)
    assert train.mean() == whole.informativeness_train


def test_what_cannot_be_scored_is_refused_before_ray_is_asked() -> None:
    train, values, test, truth = _split(20)
    values = values * np.array([1, 0, 1])
    with pytest.raises(ValueError, match="train_values: got the single value 0 for factor 1"):
        fit_factors(train, values, test, truth, regressor="lightgbm", seed=0, say=lambda _: None)
    assert not ray.is_initialized()


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
