"""Workers that each hold a part of the rows fit the probe of one that holds all; several draws of the same images."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from soda_dist.metrics.classification import Labelled, binomial, headline
from soda_dist.metrics.probe import LinearProbe, evaluate, fit_probe
from tests.metrics.test_probe import SETTINGS, _gaussians

pytestmark = pytest.mark.slow


class Threads:
    """A collective over threads: sums in the order of ranks."""

    def __init__(self, world: int) -> None:
        self.values: list[Tensor] = [torch.zeros(0)] * world
        self.barrier = threading.Barrier(world, timeout=60)

    def of(self, rank: int) -> "Member":
        return Member(self, rank, len(self.values))


class Member:
    def __init__(self, together: Threads, rank: int, world: int) -> None:
        self.together, self.rank, self.world = together, rank, world

    def sum(self, values: Tensor) -> Tensor:
        self.together.values[self.rank] = values
        self.together.barrier.wait()
        total = torch.stack(self.together.values).sum(0)
        self.together.barrier.wait()
        return total


def together(sizes: list[int], work: Callable[[Member, slice], object]) -> list:
    """`work(member, its rows)` in a thread for each size."""
    ends = torch.tensor(sizes).cumsum(0).tolist()
    threads = Threads(len(sizes))
    with ThreadPoolExecutor(len(sizes)) as pool:
        futures = [
            pool.submit(work, threads.of(rank), slice(end - size, end))
            for rank, (size, end) in enumerate(zip(sizes, ends, strict=True))
        ]
        return [future.result() for future in futures]


def fit(latents: Tensor, labels: Tensor, sizes: list[int], **changed: object) -> list[LinearProbe]:
    settings = {**SETTINGS, "seed": 3, "classes": 2, "epochs": 8, "batch": 32, **changed}
    return together(
        sizes, lambda member, rows: fit_probe(latents[..., rows, :], labels[rows], workers=member, **settings)
    )


def cases() -> dict[str, tuple[Tensor, Tensor, int]]:
    generator = torch.Generator().manual_seed(0)
    latents = 5 + torch.randn(400, 12, generator=generator) * torch.logspace(-2, 2, 12)
    classes = (latents[:, 3] > 5).long() + 2 * (latents[:, 7] > 5).long()
    attributes = (latents[:, 1:4] > torch.tensor([5.0, 5.02, 4.9])).long()
    draws = torch.stack([latents, latents + 0.1 * torch.randn(400, 12, generator=generator)])
    return {
        "classes": (latents, classes, 4),
        "attributes": (latents, attributes, 2),
        "draws": (draws, classes, 4),
        "half precision": (latents.to(torch.bfloat16), classes, 4),
    }


EVERY_DAY = {("classes", 1), ("classes", 2), ("attributes", 3), ("draws", 3), ("half precision", 2), ("classes", 0)}
DIVISIONS = [
    pytest.param(case, sizes, id=f"{case}-{sizes}", marks=() if (case, number) in EVERY_DAY else pytest.mark.long)
    for case in cases()
    for number, sizes in enumerate([[400], [150, 250], [3, 390, 7], [400, 0, 0]])
]


@pytest.mark.parametrize(("case", "sizes"), DIVISIONS)
def test_any_division_of_the_rows_gives_the_same_probe(case: str, sizes: list[int]) -> None:
    """A member with few rows has none of most batches."""
    latents, labels, classes = cases()[case]
    alone = fit_probe(latents, labels, **{**SETTINGS, "seed": 3, "classes": classes, "epochs": 8, "batch": 32})
    for probe in fit(latents, labels, sizes, classes=classes):
        assert probe.held_out == alone.held_out and len(alone.held_out) == 3
        assert (probe.learning_rate, probe.heads) == (alone.learning_rate, alone.heads)
        for name in ("mean", "variance", "weight", "bias"):
            torch.testing.assert_close(getattr(probe, name), getattr(alone, name), rtol=1e-4, atol=1e-4)
        rows = latents if latents.ndim == 2 else latents[0]
        assert torch.equal(probe.predict(rows).argmax(-1), alone.predict(rows).argmax(-1))
        assert headline(alone.predict(rows), labels) > 0.8


def test_three_workers_reach_the_bayes_accuracy() -> None:
    distance, rows = 2.0, 20_000
    bayes = float(torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor(distance / 2)))
    probe = fit(*_gaussians(rows, distance, seed=1), [9_000, 4_000, 7_000], batch=512, learning_rates=(1e-2,))[2]
    latents, labels = _gaussians(rows, distance, seed=2)
    assert abs(headline(probe.predict(latents), labels) - bayes) < 2 * binomial(bayes, rows).standard_error


def test_every_worker_reports_the_same_scores() -> None:
    latents, labels = _gaussians(600, 3.0, seed=4)
    test = Labelled(*_gaussians(500, 3.0, seed=5))
    settings = {**SETTINGS, "epochs": 4, "classes": 2, "seed": 1}
    alone = evaluate(Labelled(latents, labels), test, **settings)
    for scores in together(
        [200, 400],
        lambda member, rows: evaluate(Labelled(latents[rows], labels[rows]), test, workers=member, **settings),
    ):
        assert scores == alone


@pytest.mark.parametrize("label", [-1, 2])
def test_a_wrong_label_of_one_worker_is_refused_by_all(label: int) -> None:
    latents, labels = _gaussians(50, 2.0, seed=6)
    labels[45] = label
    with pytest.raises(ValueError, match="for 2 classes"):
        fit(latents, labels, [40, 10])

    def refused(member: Member, rows: slice) -> str:
        with pytest.raises(ValueError, match="for 2 classes") as caught:
            fit_probe(latents[rows], labels[rows], workers=member, **{**SETTINGS, "classes": 2, "seed": 0})
        return str(caught.value)

    one, other = together([40, 10], refused)
    assert one == other


def test_epochs_take_turns_with_the_draws() -> None:
    """Of two draws the even epochs read the first: with one epoch the second has no part in the weights."""
    latents, labels = _gaussians(512, 2.0, seed=7)
    other = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    settings = {**SETTINGS, "classes": 2, "seed": 0, "learning_rates": (1e-2,)}
    first = fit_probe(latents, labels, **{**settings, "epochs": 1})
    both = fit_probe(torch.stack([latents, other]), labels, **{**settings, "epochs": 1})
    torch.testing.assert_close(both.weight, first.weight)
    swapped = fit_probe(torch.stack([other, latents]), labels, **{**settings, "epochs": 1})
    assert not torch.allclose(swapped.weight, first.weight, atol=1e-3)
    two = fit_probe(torch.stack([latents, other]), labels, **{**settings, "epochs": 2})
    again = fit_probe(torch.stack([latents, other, latents]), labels, **{**settings, "epochs": 2})
    torch.testing.assert_close(two.weight, again.weight)
    assert not torch.allclose(two.weight, fit_probe(latents, labels, **{**settings, "epochs": 2}).weight, atol=1e-3)


def test_statistics_and_the_choice_are_over_all_draws() -> None:
    latents, labels = _gaussians(300, 2.0, seed=8)
    draws = torch.stack([latents, 3 * latents + 1])
    probe = fit_probe(draws, labels, **{**SETTINGS, "classes": 2, "seed": 0, "epochs": 2})
    every = draws.reshape(600, 8).double()
    torch.testing.assert_close(probe.mean, every.mean(0).float())
    torch.testing.assert_close(probe.variance, every.var(0, correction=0).float())
    contrary = fit_probe(
        torch.stack([latents, -latents]), labels, **{**SETTINGS, "classes": 2, "seed": 0, "epochs": 1, "batch": 16}
    )
    assert contrary.held_out[3e-2] == pytest.approx(0.5, abs=0.1), "taught by the first draw, tried on both"


def test_augmented_draws_help_where_one_draw_is_learnt_by_heart() -> None:
    """Noise that differs from draw to draw: eight draws of few images are nearer to the Bayes rule than one."""
    generator = torch.Generator().manual_seed(9)
    labels = torch.arange(64) % 2
    clean = torch.zeros(64, 64)
    clean[:, 0] = labels - 0.5
    draws = clean + 0.5 * torch.randn(8, 64, 64, generator=generator)
    truth = torch.arange(4000) % 2
    test = 0.5 * torch.randn(4000, 64, generator=generator)
    test[:, 0] += truth - 0.5
    settings = {**SETTINGS, "classes": 2, "seed": 0, "epochs": 40, "batch": 64, "learning_rates": (1e-2,)}
    many = headline(fit_probe(draws, labels, **settings).predict(test), truth)
    one = headline(fit_probe(draws[0], labels, **settings).predict(test), truth)
    assert many > one + 0.03


@pytest.mark.parametrize("sizes", [[400], [150, 250]], ids=str)
def test_learning_rates_are_compared_on_the_plain_rows_and_fitted_on_the_draws(sizes: list[int]) -> None:
    """Plain rows of other images leave the choice to chance, and the fit at each rate as it was."""
    draws, labels, classes = cases()["draws"]
    settings = {**SETTINGS, "seed": 3, "classes": classes, "epochs": 8, "batch": 32}
    usual = fit_probe(draws, labels, **settings)
    assert max(usual.held_out.values()) > 0.7
    lost = draws[0].roll(1, 0)
    for shown, good in ((draws[0], True), (lost, False)):
        found = together(
            sizes,
            lambda member, rows, shown=shown: fit_probe(
                draws[:, rows], labels[rows], plain=shown[rows], workers=member, **settings
            ),
        )
        for probe in found:
            assert (max(probe.held_out.values()) > 0.7) == good
            again = fit_probe(draws, labels, **{**settings, "learning_rates": (probe.learning_rate,)})
            torch.testing.assert_close(probe.weight, again.weight, rtol=1e-4, atol=1e-5)
    alone = fit_probe(draws, labels, plain=draws[:1], **settings)
    assert fit_probe(draws, labels, plain=draws[0], **settings).held_out == alone.held_out != usual.held_out
