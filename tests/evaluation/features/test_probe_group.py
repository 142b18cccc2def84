"""The probe over real actors: the local one's scores, parts of any number, refused and lost actors."""

import os
import signal
import threading
from contextlib import suppress

import numpy as np
import psutil
import pytest
import ray
import torch
from sklearn.datasets import load_digits

from soda_dist.distributed.probe_group import Gang, Rows, evaluate_in_parallel
from soda_dist.errors import UserError
from soda_dist.metrics.classification import Labelled, Scores
from soda_dist.metrics.probe import evaluate
from tests.metrics.test_probe import SETTINGS

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("cluster")]
FIT = {**SETTINGS, "classes": 10, "seed": 2, "learning_rates": (1e-2, 3e-2), "epochs": 6}


def gang(workers: int, cpus: float = 1.0, timeout: float = 60.0) -> Gang:
    return Gang(workers=workers, cpus=cpus, gpus=0.0, start_timeout_s=timeout)


def digits(draws: int = 0) -> tuple[Labelled, Labelled]:
    latents, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
    latents = latents.float()
    train = latents[:1200]
    if draws:
        train = train + torch.randn(draws, 1200, 64, generator=torch.Generator().manual_seed(0))
    return Labelled(train, labels[:1200]), Labelled(latents[1200:], labels[1200:])


def stored(whole: Labelled, sizes: list[int]) -> list[Rows]:
    parts = zip(whole.latents.split(sizes, dim=-2), whole.labels.split(sizes), strict=True)
    return [Rows(*(ray.put(tensor.numpy().copy()) for tensor in part)) for part in parts]


def run(workers: int, sizes: list[int], draws: int = 0, say=lambda _: None, **changed) -> Scores:
    train, test = digits(draws)
    (held,) = stored(test, [len(test.labels)])
    return evaluate_in_parallel(stored(train, sizes), held, gang(workers), say, **{**FIT, **changed})


@pytest.mark.parametrize(
    ("workers", "sizes", "draws"),
    [(1, [700, 500], 0), (2, [100, 300, 800], 0), (3, [500, 400, 300], 2), (3, [800, 400], 0)],
    ids=str,
)
def test_the_scores_are_those_of_one_process(workers: int, sizes: list[int], draws: int) -> None:
    """More parts than workers, and fewer."""
    alone = evaluate(*digits(draws), **FIT)
    assert alone.estimates["top1"].value > 0.85
    assert run(workers, sizes, draws) == alone


def test_attributes_come_with_their_own_f1() -> None:
    train, test = digits()
    train, test = (Labelled(x.latents, torch.stack([x.labels % 2, x.labels // 5], 1)) for x in (train, test))
    settings = {**FIT, "classes": 2}
    (held,) = stored(test, [len(test.labels)])
    scores = evaluate_in_parallel(stored(train, [600, 600]), held, gang(2), lambda _: None, **settings)
    assert scores == evaluate(train, test, **settings)
    assert len(scores.details["f1_by_attribute"]) == 2


def test_a_gang_that_the_cluster_has_no_room_for_is_refused() -> None:
    train, test = digits()
    parts, held = stored(train, [1200]), stored(test, [len(test.labels)])[0]
    with pytest.raises(UserError, match="no room for 2 workers with 1000 CPU each within 1 s"):
        evaluate_in_parallel(parts, held, gang(2, cpus=1000, timeout=1), lambda _: None, **FIT)


def test_a_wrong_label_is_told_as_it_is_in_one_process() -> None:
    with pytest.raises(ValueError, match=r"labels 0\.\.9 for 5 classes"):
        run(2, [600, 600], classes=5)


def test_a_killed_actor_ends_its_gang_and_the_next_one_gives_the_same_scores() -> None:
    killed: list[int] = []
    found = threading.Event()
    before = {process.pid for process in psutil.Process().children(recursive=True)}  # an earlier test's may still end

    def kill() -> None:
        while not found.wait(0.05):
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    if process.pid not in before and "_Member.fit" in " ".join(process.cmdline()):
                        os.kill(process.pid, signal.SIGKILL)
                        killed.append(process.pid)
                        return

    said: list[str] = []
    killer = threading.Thread(target=kill)
    killer.start()
    scores = run(2, [600, 600], say=said.append, epochs=40)
    found.set()
    killer.join()
    assert killed and said == ["an actor of the probe was lost; a new gang begins again"]
    alone = evaluate(*digits(), **{**FIT, "epochs": 40})
    assert scores == alone
    assert np.isfinite(scores.estimates["top1"].value)
