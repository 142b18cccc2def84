"""Weighted nearest neighbours: labels predicted from the geometry of the latents, without fitting."""

import torch
from torch import Tensor
from torch.nn import functional as F

from soda_dist.metrics.classification import Labelled, Scores, details_of, score

BLOCK = 4096


def evaluate(
    train: Labelled, test: Labelled, *, classes: int, seed: int, k: int, temperature: float, block: int = BLOCK
) -> Scores:
    """Score `test` by the votes of the `k` nearest rows of `train`."""
    votes = knn_votes(
        train.latents, train.labels, test.latents, classes=classes, k=k, temperature=temperature, block=block
    )
    return Scores(score(votes, test.labels, seed=seed), {"k": k, **details_of(votes, test.labels)})


def knn_votes(
    train: Tensor, labels: Tensor, test: Tensor, *, classes: int, k: int, temperature: float, block: int = BLOCK
) -> Tensor:
    """Sum votes for each class: neighbours vote with weight exp(cosine similarity / temperature).

    Args:
        train, test: [N, D] and [M, D], any real dtype.
        labels: int64 [N], or [N, A] of 0 and 1.
        temperature: near 0 only the nearest row votes, near infinity all votes are equal.

    Returns:
        float32 [M, classes] or [M, A, classes]; the votes of one row (and attribute) sum to 1.
    """
    similarity, index = nearest(train, test, k=k, block=block)
    weights = (similarity / temperature).softmax(dim=1)
    chosen = labels.to(index.device)[index]
    if labels.ndim == 1:
        return torch.zeros(len(test), classes, device=weights.device).scatter_add_(1, chosen, weights)
    votes = torch.zeros(len(test), labels.shape[1], classes, device=weights.device)
    return votes.scatter_add_(2, chosen.transpose(1, 2), weights[:, None].expand(-1, labels.shape[1], -1))


def nearest(train: Tensor, test: Tensor, *, k: int, block: int) -> tuple[Tensor, Tensor]:
    """Find the `k` rows of `train` most similar to each row of `test`, by cosine: exact, in blocks of `block` rows.

    Returns similarity, float32 [M, k], descending, and index, int64 [M, k] into `train`. A zero row has similarity 0.
    ValueError if `k` is not in 1..N.
    """
    if not 1 <= k <= len(train):
        raise ValueError(f"nearest: got k={k} for {len(train)} rows; allowed: 1..{len(train)}")
    parts = [_nearest(train, F.normalize(rows.float(), dim=1), k, block) for rows in test.split(block)]
    return torch.cat([similarity for similarity, _ in parts]), torch.cat([index for _, index in parts])


def _nearest(train: Tensor, queries: Tensor, k: int, block: int) -> tuple[Tensor, Tensor]:
    best = torch.empty(len(queries), 0, device=queries.device)
    found = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for start in range(0, len(train), block):
        rows = F.normalize(train[start : start + block].float(), dim=1)
        similarity, index = (queries @ rows.T).topk(min(k, len(rows)), dim=1)
        merged, places = torch.cat([best, similarity], dim=1), torch.cat([found, index + start], dim=1)
        best, order = merged.topk(min(k, merged.shape[1]), dim=1)
        found = places.gather(1, order)
    return best, found
