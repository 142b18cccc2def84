"""Scores against scikit-learn, closed forms, and the spread over repeated draws."""

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, top_k_accuracy_score

from soda_dist.metrics.classification import binomial, details_of, headline, headline_of, macro_f1, score, tally, top_k


def _random(rows: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (rows,), generator=generator)
    return torch.randn(rows, classes, generator=generator), labels


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_equals_scikit_learn(k: int) -> None:
    logits, labels = _random(500, 9)
    expected = top_k_accuracy_score(labels.numpy(), logits.numpy(), k=k, labels=range(9))
    assert top_k(logits, labels, k) == pytest.approx(expected)


def test_equal_logits_predict_the_lowest_class_as_argmax_does() -> None:
    labels = torch.tensor([0, 0, 1, 2])
    assert top_k(torch.zeros(4, 3), labels, 1) == 0.5
    assert top_k(torch.zeros(4, 3), labels, 2) == 0.75


def test_top_k_refuses_more_than_the_classes() -> None:
    with pytest.raises(ValueError, match="k=4 for 3 classes"):
        top_k(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), 4)


def test_macro_f1_equals_scikit_learn_and_its_definition() -> None:
    generator = torch.Generator().manual_seed(1)
    labels, predicted = (torch.randint(2, (200, 6), generator=generator) for _ in range(2))
    by_attribute = []
    for truth, claim in zip(labels.T.tolist(), predicted.T.tolist(), strict=True):
        hits = sum(t and c for t, c in zip(truth, claim, strict=True))
        by_attribute.append(2 * hits / (sum(truth) + sum(claim)))
    assert macro_f1(predicted, labels) == pytest.approx(np.mean(by_attribute))
    assert macro_f1(predicted[:, :1], labels[:, :1]) == pytest.approx(f1_score(labels[:, 0], predicted[:, 0]))


def test_macro_f1_counts_an_attribute_never_predicted_as_zero() -> None:
    labels = torch.tensor([[1, 1], [0, 1]])
    predicted = torch.tensor([[0, 1], [0, 1]])
    assert macro_f1(predicted, labels) == 0.5


def test_f1_of_attributes_stands_in_their_order() -> None:
    generator = torch.Generator().manual_seed(2)
    labels, predicted = (torch.randint(2, (200, 4), generator=generator) for _ in range(2))
    predicted[:, 2] = labels[:, 2]
    logits = torch.nn.functional.one_hot(predicted, 2).float()
    expected = [f1_score(labels[:, a], predicted[:, a]) for a in range(4)]
    assert details_of(logits, labels) == {"f1_by_attribute": pytest.approx(expected)}
    assert expected[2] == 1.0 and max(expected[:2]) < 0.8
    assert details_of(logits[:, 0], labels[:, 0]) == {}


def test_macro_f1_of_classes_equals_scikit_learn_where_a_class_does_not_occur() -> None:
    logits, labels = _random(300, 7, seed=3)
    labels[labels == 4] = 2
    logits[:, 5] = -10.0  # labelled but never predicted; class 4 is predicted but never labelled
    logits[:, 6], labels[labels == 6] = -10.0, 1  # neither
    expected = f1_score(labels, logits.argmax(1), average="macro", zero_division=0.0)
    assert score(logits, labels, seed=0)["macro_f1"].value == pytest.approx(expected)


def test_f1_error_of_classes_is_the_spread_over_repeated_test_sets() -> None:
    repeats = [score(*_random(300, 4, seed), seed=0)["macro_f1"] for seed in range(100)]
    spread = np.std([each.value for each in repeats])
    assert repeats[0].standard_error == pytest.approx(spread, rel=0.25)


@pytest.mark.parametrize("attributes", [0, 3])
def test_tallies_of_parts_add_up_to_the_whole(attributes: int) -> None:
    logits, labels = _random(90, 6)
    if attributes:
        logits, labels = logits.unflatten(1, (3, 2)), labels[:, None] // torch.tensor([1, 2, 3]) % 2
    cuts = zip(logits.split([10, 0, 80]), labels.split([10, 0, 80]), strict=True)
    assert headline_of(sum(tally(*part) for part in cuts)) == headline(logits, labels)


def test_classes_get_top5_only_when_there_are_more_than_five() -> None:
    assert list(score(*_random(50, 5), seed=0)) == ["top1", "macro_f1"]
    estimates = score(*_random(50, 6), seed=0)
    assert list(estimates) == ["top1", "top5", "macro_f1"]
    assert estimates["top5"].value > estimates["top1"].value


def test_binomial_error_is_the_closed_form_and_the_spread_of_repeats() -> None:
    assert binomial(0.5, 100).standard_error == pytest.approx(0.05)
    repeats = [binomial(top_k(*_random(400, 4, seed), 1), 400) for seed in range(300)]
    assert score(*_random(400, 4), seed=0)["top1"] == repeats[0]
    spread = np.std([each.value for each in repeats])
    assert repeats[0].standard_error == pytest.approx(spread, rel=0.2)


def test_f1_error_is_the_spread_over_repeated_test_sets() -> None:
    repeats = []
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        labels = (torch.rand(300, 3, generator=generator) < 0.3).long()
        wrong = torch.rand(300, 3, generator=generator) < 0.2
        predicted = torch.where(wrong, 1 - labels, labels)
        repeats.append(score(torch.nn.functional.one_hot(predicted, 2).float(), labels, seed=0))
    spread = np.std([each["macro_f1"].value for each in repeats])
    assert repeats[0]["macro_f1"].standard_error == pytest.approx(spread, rel=0.25)
    spread = np.std([each["accuracy"].value for each in repeats])
    assert repeats[0]["accuracy"].standard_error == pytest.approx(spread, rel=0.2)


def test_headline_is_the_first_estimate() -> None:
    logits, labels = _random(80, 7)
    assert headline(logits, labels) == next(iter(score(logits, labels, seed=0).values())).value
    logits, labels = torch.randn(80, 3, 2, generator=torch.Generator().manual_seed(0)), labels[:, None].repeat(1, 3) % 2
    assert headline(logits, labels) == next(iter(score(logits, labels, seed=0).values())).value
