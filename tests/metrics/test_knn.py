"""Neighbours against scikit-learn's, votes against closed cases."""

import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from soda_dist.metrics.classification import Labelled
from soda_dist.metrics.knn import evaluate, knn_votes, nearest


def _rows(count: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("block", [7, 64, 1000])
@pytest.mark.parametrize("k", [1, 20])
def test_neighbours_equal_scikit_learn_whatever_the_block(block: int, k: int) -> None:
    train, test = _rows(300, 12, 0), _rows(53, 12, 1)
    reference = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(train.double().numpy())
    distance, index = reference.kneighbors(test.double().numpy())
    similarity, found = nearest(train, test, k=k, block=block)
    assert torch.equal(found, torch.from_numpy(index))
    torch.testing.assert_close(similarity, torch.from_numpy(1 - distance).float(), rtol=0, atol=1e-5)


def test_votes_are_exponential_in_the_similarity() -> None:
    train = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])
    votes = knn_votes(train, torch.tensor([0, 1, 2]), torch.tensor([[5.0, 0.0]]), classes=3, k=3, temperature=0.5)
    expected = torch.tensor([[1.0, 0.0, -1.0]]).div(0.5).exp()
    torch.testing.assert_close(votes, expected / expected.sum())


def test_a_small_temperature_lets_the_nearest_decide_and_a_large_one_the_majority() -> None:
    train = torch.tensor([[1.0, 0.0], [0.9, 0.4], [0.9, -0.4]])
    labels, query = torch.tensor([0, 1, 1]), torch.tensor([[1.0, 0.0]])
    for temperature, winner in ((1e-4, 0), (1e4, 1)):
        votes = knn_votes(train, labels, query, classes=2, k=3, temperature=temperature)
        assert votes.isfinite().all()
        assert int(votes.argmax()) == winner


def test_weighted_votes_equal_scikit_learn() -> None:
    train, test, labels = _rows(300, 6, 2), _rows(80, 6, 3), torch.arange(300) % 5
    reference = KNeighborsClassifier(
        n_neighbors=15,
        metric="cosine",
        algorithm="brute",
        weights=lambda d: torch.exp((1 - torch.tensor(d)) / 0.07).numpy(),
    ).fit(train.numpy(), labels.numpy())
    votes = knn_votes(train, labels, test, classes=5, k=15, temperature=0.07)
    torch.testing.assert_close(
        votes.double(), torch.from_numpy(reference.predict_proba(test.numpy())), rtol=0, atol=1e-4
    )


def test_attributes_are_voted_on_one_by_one() -> None:
    train, test = _rows(100, 4, 4), _rows(20, 4, 5)
    labels = torch.stack([torch.arange(100) % 2, torch.arange(100) // 50], dim=1)
    votes = knn_votes(train, labels, test, classes=2, k=7, temperature=0.1)
    for attribute in range(2):
        alone = knn_votes(train, labels[:, attribute], test, classes=2, k=7, temperature=0.1)
        torch.testing.assert_close(votes[:, attribute], alone)


def test_each_row_finds_itself_and_copies_share_its_label() -> None:
    latents, labels = _rows(200, 8, 6), torch.arange(200) % 10
    train = Labelled(latents.repeat(2, 1), labels.repeat(2))
    scores = evaluate(train, Labelled(latents * 3.0, labels), classes=10, seed=0, k=2, temperature=0.07)
    assert scores.estimates["top1"].value == 1.0


def test_useless_latents_give_chance() -> None:
    labels = torch.randint(4, (3000,), generator=torch.Generator().manual_seed(0))
    train, test = Labelled(_rows(2000, 16, 7), labels[:2000]), Labelled(_rows(1000, 16, 8), labels[2000:])
    estimate = evaluate(train, test, classes=4, seed=0, k=20, temperature=0.07).estimates["top1"]
    assert abs(estimate.value - 0.25) < 3 * estimate.standard_error


def test_a_zero_row_is_similar_to_none() -> None:
    similarity, index = nearest(torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([[2.0, 2.0]]), k=2, block=8)
    torch.testing.assert_close(similarity, torch.tensor([[1.0, 0.0]]))
    assert index.tolist() == [[1, 0]]


@pytest.mark.parametrize("k", [0, 11])
def test_more_neighbours_than_rows_are_refused(k: int) -> None:
    with pytest.raises(ValueError, match=f"k={k} for 10 rows"):
        nearest(_rows(10, 3, 0), _rows(2, 3, 1), k=k, block=4)
