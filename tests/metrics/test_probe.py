"""The probe against scikit-learn's logistic regression, a known Bayes rate, chance, and its own contract."""

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from torch import Tensor

from soda_dist.metrics import METRICS
from soda_dist.metrics.classification import Labelled, binomial, headline
from soda_dist.metrics.probe import LinearProbe, evaluate, fit_probe

SETTINGS = {
    "learning_rates": (1e-3, 1e-2, 3e-2),
    "epochs": 40,
    "batch": 128,
    "dropout": 0.1,
    "label_smoothing": 0.0,
    "weight_std": 0.02,
    "bias": 0.0,
}


def _fit(latents: Tensor, labels: Tensor, classes: int, seed: int = 0, **changed: object) -> LinearProbe:
    return fit_probe(latents, labels, classes=classes, seed=seed, **{**SETTINGS, **changed})


def _gaussians(rows: int, distance: float, seed: int) -> tuple[Tensor, Tensor]:
    """Two unit Gaussians in 8 dimensions whose means are `distance` apart: Bayes accuracy Phi(distance / 2)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (rows,), generator=generator)
    direction = torch.full((8,), 8**-0.5)
    noise = torch.randn(rows, 8, generator=generator)
    return noise + (labels[:, None] - 0.5) * distance * direction, labels


def test_digits_within_half_a_point_of_logistic_regression() -> None:
    """Threefold, so that every one of the 1,797 images is a test image once."""
    digits = load_digits()
    latents, labels = torch.tensor(digits.data, dtype=torch.float32), torch.tensor(digits.target)
    folds = torch.randperm(len(latents), generator=torch.Generator().manual_seed(0)).chunk(3)
    found, expected = [], []
    for number, test in enumerate(folds):
        train = torch.cat([fold for other, fold in enumerate(folds) if other != number])
        scale = latents[train].std(dim=0) + 1e-6
        reference = LogisticRegression(max_iter=2000).fit(latents[train] / scale, labels[train])
        expected.append(reference.score(latents[test] / scale, labels[test]))
        some, others = (Labelled(latents[rows], labels[rows]) for rows in (train, test))
        scores = evaluate(some, others, classes=10, seed=number, **{**SETTINGS, "learning_rates": (1e-2, 3e-2)})
        found.append(scores.estimates["top1"].value)
        assert scores.estimates["top5"].value > 0.99
    assert sum(found) / 3 == pytest.approx(sum(expected) / 3, abs=0.005)


def test_gaussian_classes_reach_the_bayes_accuracy() -> None:
    distance, rows = 2.0, 20_000
    bayes = float(torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor(distance / 2)))
    probe = _fit(*_gaussians(rows, distance, seed=1), 2, epochs=10, batch=512)
    latents, labels = _gaussians(rows, distance, seed=2)
    assert abs(headline(probe.predict(latents), labels) - bayes) < 2 * binomial(bayes, rows).standard_error


def test_logits_are_calibrated_on_gaussian_classes() -> None:
    """For these classes the Bayes log-odds are distance * (direction . x): slope and offset are known."""
    latents, labels = _gaussians(20_000, 2.0, seed=3)
    probe = _fit(latents, labels, 2, epochs=10, batch=512, dropout=0.0, learning_rates=(1e-2,))
    logits = probe.predict(latents)
    odds, exact = logits[:, 1] - logits[:, 0], 2.0 * latents.sum(dim=1) * 8**-0.5
    slope = float((odds * exact).sum() / exact.square().sum())
    assert slope == pytest.approx(1.0, abs=0.05)
    assert float(odds.mean()) == pytest.approx(float(exact.mean()), abs=0.05)


def test_useless_latents_give_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    latents, labels = torch.randn(4000, 16, generator=generator), torch.randint(4, (4000,), generator=generator)
    probe = _fit(latents[:2000], labels[:2000], 4, epochs=10)
    accuracy = headline(probe.predict(latents[2000:]), labels[2000:])
    assert abs(accuracy - 0.25) < 3 * binomial(0.25, 2000).standard_error


def test_a_constant_latent_is_harmless_and_gives_the_larger_class() -> None:
    labels = (torch.arange(300) % 3 == 0).long()
    latents = torch.full((300, 4), 7.0)
    probe = _fit(latents, labels, 2)
    assert headline(probe.predict(latents), labels) == pytest.approx(2 / 3, abs=0.01)


@pytest.mark.parametrize(("scale", "offset"), [(1000.0, 50.0), (1e-4, 0.0)])
def test_the_scale_and_offset_of_the_latents_do_not_matter(scale: float, offset: float) -> None:
    latents, labels = _gaussians(1000, 2.0, seed=4)
    plain = _fit(latents, labels, 2, epochs=10).predict(latents)
    moved = _fit(latents * scale + offset, labels, 2, epochs=10).predict(latents * scale + offset)
    torch.testing.assert_close(plain, moved, rtol=0.02, atol=0.02)


def test_duplicated_latents_change_nothing_that_counts() -> None:
    latents, labels = _gaussians(4000, 2.0, seed=5)
    test, truth = _gaussians(4000, 2.0, seed=6)
    once = headline(_fit(latents, labels, 2, epochs=10).predict(test), truth)
    twice = headline(_fit(latents.repeat(1, 2), labels, 2, epochs=10).predict(test.repeat(1, 2)), truth)
    assert once == pytest.approx(twice, abs=0.01)


def test_attributes_get_a_head_each() -> None:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(3000, 5, generator=generator)
    labels = torch.stack(
        [latents[:, 0] > 0, latents[:, 3] > 1.0, torch.rand(3000, generator=generator) > 0.5], 1
    ).long()
    train, test = Labelled(latents[:2000], labels[:2000]), Labelled(latents[2000:], labels[2000:])
    settings = {**SETTINGS, "epochs": 15}
    probe = _fit(train.latents, train.labels, 2, epochs=15)
    logits = probe.predict(test.latents)
    assert logits.shape == (1000, 3, 2)
    right = (logits.argmax(-1) == test.labels).float().mean(0)
    assert right[0] > 0.95 and right[1] > 0.95 and abs(right[2] - 0.5) < 0.06
    scores = METRICS["probe"](train, test, classes=2, seed=0, **settings)
    assert list(scores.estimates) == ["macro_f1", "accuracy"]
    assert 0.7 < scores.estimates["macro_f1"].value < 0.95
    by_attribute = [f1_score(test.labels[:, a], logits.argmax(-1)[:, a]) for a in range(3)]
    assert scores.details["f1_by_attribute"] == pytest.approx(by_attribute)


def test_the_rate_that_cannot_learn_is_not_chosen() -> None:
    latents, labels = _gaussians(2000, 4.0, seed=7)
    probe = _fit(latents, labels, 2, learning_rates=(1e-9, 1e-2), epochs=10)
    assert probe.learning_rate == 1e-2
    assert set(probe.held_out) == {1e-9, 1e-2}
    assert _fit(latents, labels, 2, learning_rates=(1e-9,)).held_out == {}


def test_the_test_labels_have_no_part_in_the_choice() -> None:
    latents, labels = _gaussians(1000, 1.0, seed=8)
    train = Labelled(latents[:500], labels[:500])
    settings = {**SETTINGS, "classes": 2, "seed": 0, "epochs": 10}
    honest = evaluate(train, Labelled(latents[500:], labels[500:]), **settings)
    flipped = evaluate(train, Labelled(latents[500:], 1 - labels[500:]), **settings)
    assert honest.details == flipped.details
    assert honest.estimates["top1"].value == pytest.approx(1 - flipped.estimates["top1"].value)


def test_held_out_rows_are_not_trained_on() -> None:
    """Latents that name their row let a probe remember, but not generalise: held-out accuracy stays at chance."""
    labels = torch.randint(2, (400,), generator=torch.Generator().manual_seed(0))
    probe = _fit(torch.eye(400), labels, 2, epochs=60)
    assert headline(probe.predict(torch.eye(400)), labels) > 0.95
    assert max(probe.held_out.values()) < 0.8


def test_equal_seeds_give_equal_probes_and_other_seeds_do_not() -> None:
    latents, labels = _gaussians(500, 2.0, seed=9)
    one, same, other = (_fit(latents, labels, 2, seed=seed, epochs=5).weight for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_other_learning_rates_do_not_disturb_a_rate() -> None:
    latents, labels = _gaussians(500, 2.0, seed=10)
    both = _fit(latents, labels, 2, learning_rates=(1e-2, 1e-9), epochs=10)
    alone = _fit(latents, labels, 2, learning_rates=(1e-2,), epochs=10)
    assert both.learning_rate == 1e-2
    assert torch.equal(both.weight, alone.weight)


def test_dropout_drops_inputs_and_scales_up_the_others() -> None:
    """One input, 1 / (1 - p) times as large where it is kept: the slope is 1 - p times as steep."""
    generator = torch.Generator().manual_seed(13)
    labels = torch.randint(2, (20_000,), generator=generator)
    latents = torch.randn(20_000, 1, generator=generator) + 2.0 * (labels[:, None] - 0.5)
    slopes = []
    for dropout in (0.0, 0.5):
        settings = {"learning_rates": (3e-2,), "epochs": 10, "batch": 512, "dropout": dropout}
        logits = _fit(latents, labels, 2, **settings).predict(latents)
        odds = logits[:, 1] - logits[:, 0]
        slopes.append(float((odds * latents[:, 0]).mean() / latents.square().mean()))
    assert slopes[0] == pytest.approx(2.0, rel=0.05)
    assert slopes[1] == pytest.approx(1.0, rel=0.05)


def test_label_smoothing_bounds_the_confidence() -> None:
    latents, labels = _gaussians(2000, 20.0, seed=11)
    probe = _fit(latents, labels, 2, label_smoothing=0.1, learning_rates=(3e-2,), dropout=0.0)
    confidence = probe.predict(latents).softmax(dim=1).max(dim=1).values.mean()
    assert float(confidence) == pytest.approx(0.95, abs=0.02)


def test_the_initial_weights_and_bias_are_the_given_ones() -> None:
    latents, labels = _gaussians(256, 2.0, seed=12)
    probe = _fit(latents.repeat(1, 200), labels, 2, learning_rates=(1e-12,), epochs=1, weight_std=0.02, bias=-10.0)
    assert float(probe.weight.std()) == pytest.approx(0.02, rel=0.05)
    assert torch.all(probe.bias == -10.0)


@pytest.mark.parametrize(
    ("rows", "top", "message"), [(1, 0, "1 latents"), (10, 3, "labels 0..3 for 3 classes")], ids=["one row", "a label"]
)
def test_what_cannot_be_fitted_is_refused(rows: int, top: int, message: str) -> None:
    labels = torch.zeros(rows, dtype=torch.int64)
    labels[-1] = top
    with pytest.raises(ValueError, match=message):
        _fit(torch.zeros(rows, 2), labels, 3)
