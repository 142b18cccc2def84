"""Quality of latents without labels: retrieval of an image's other view, and effective rank."""

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 4096
TIE = 1e-5
"""Cosines closer than this are equal."""
LEAST_RANK, LEAST_CHANCE = 2.0, 3.0
"""Below this effective rank, or below this multiple of chance in retrieval, latents count as collapsed (our choice)."""


def measure(one: Tensor, other: Tensor) -> dict[str, float]:
    """Score the latents of two views of the same N images.

    Args:
        one, other: real [N, D]; row i of both belongs to image i.

    Returns:
        retrieval: fraction of images whose other view is the nearest by cosine, in [0, 1]; chance is 1/N.
        effective_rank: of `one`, in 1..D, or 0 if all rows are equal.
        images, dimension: N and D.
    """
    return {
        "retrieval": retrieval(one, other),
        "effective_rank": effective_rank(one),
        "images": float(len(one)),
        "dimension": float(one.shape[1]),
    }


def retrieval(one: Tensor, other: Tensor) -> float:
    """Top-1 accuracy of finding each image's row of `other` by its row of `one`; [N, D] each.

    An image that ties with others counts as found with the probability of drawing it among them: equal latents score
    1/N, and each of two duplicates 1/2.
    """
    if one.shape != other.shape or one.ndim != 2 or len(one) < 2:
        raise ValueError(f"retrieval: got {list(one.shape)} and {list(other.shape)}; allowed: two equal [N, D], N > 1")
    queries, keys = F.normalize(one.float(), dim=1), F.normalize(other.float(), dim=1)
    found = 0.0
    for rows in torch.arange(len(one), device=one.device).split(BLOCK):
        similarity = queries[rows] @ keys.T
        own = similarity.gather(1, rows[:, None])
        best = (similarity <= own + TIE).all(1)
        found += float((best / ((similarity - own).abs() <= TIE).sum(1)).sum())
    return found / len(one)


def effective_rank(latents: Tensor) -> float:
    """Exponential of the entropy of the normalised singular values of centred latents, [N, D]; 0 for equal rows.

    The effective rank of Roy and Vetterli (2007), which RankMe (Garrido et al., 2023) relates to the accuracy of linear
    probes. Our reading: latents are centred, so that a common offset does not count as a direction.
    """
    values = latents.double()
    singular = torch.linalg.svdvals(values - values.mean(0))
    smallest = max(values.shape) * torch.finfo(latents.dtype if latents.is_floating_point() else torch.float64).eps
    singular = singular[singular > smallest * torch.linalg.matrix_norm(values)]
    if not len(singular):
        return 0.0
    shares = singular / singular.sum()
    return float(torch.exp(-(shares * shares.log()).sum()))


def collapse(scores: dict[str, float]) -> str | None:
    """Say in which way the latents of `measure`'s scores have collapsed; None if they have not."""
    chance = 1 / scores["images"]
    if scores["effective_rank"] < LEAST_RANK:
        return f"effective rank {scores['effective_rank']:.2f} of {scores['dimension']:.0f}, below {LEAST_RANK:g}"
    if scores["retrieval"] < LEAST_CHANCE * chance:
        return f"retrieval {scores['retrieval']:.2%}, below {LEAST_CHANCE:g} times chance ({chance:.2%})"
    return None
