"""Distances between two sets of images by their features: FID, KID, precision and recall (section E.2).

FID needs only the moments of the features, which merge exactly across workers; KID, precision and recall need the
features themselves. All compute in float64, since FID and KID are small differences of large sums. Features must be
finite and of equal width, or ValueError is raised.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

KID_SUBSETS: Final = 100
KID_SUBSET_SIZE: Final = 1000
KID_SEED: Final = 2020
"""The defaults of torch-fidelity for these three."""
NEIGHBOURS: Final = 3
"""Kynkaanniemi et al. 2019, and torch-fidelity."""
BLOCK = 2048
ROUNDING = 1e-13
"""Rounding of squared distances over squared norms: features within 3e-7 of their length are equal."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Moments of a set of features, for FID, as numpy arrays to send between processes.

    Attributes:
        count: number of features, N.
        mean: float64 [D]; 0 for an empty set.
        scatter: float64 [D, D], the sum over features f of (f - mean)(f - mean)^T: N - 1 times the covariance.
    """

    count: int
    mean: NDArray[np.float64]
    scatter: NDArray[np.float64]


@dataclass(frozen=True)
class KernelDistance:
    """KID over random subsets: mean (which may be slightly below 0) and standard deviation."""

    mean: float
    std: float


@dataclass(frozen=True)
class PrecisionRecall:
    """Shares in [0, 1] of generated features near a real one, and of real features near a generated one."""

    precision: float
    recall: float


def moments(features: Tensor) -> Moments:
    """Compute count, mean and scatter of features [N, D], any real dtype and device; N may be 0.

    Raises:
        ValueError: not two axes, or values that are not finite.
    """
    _check(features)
    rows = features.double()
    mean = rows.sum(dim=0) / max(len(rows), 1)
    centred = rows - mean
    return Moments(len(rows), mean.cpu().numpy(), (centred.T @ centred).cpu().numpy())


def merge(a: Moments, b: Moments) -> Moments:
    """Return the moments of both sets together (Chan et al. 1979, pairwise), exact up to rounding in any order.

    Raises:
        ValueError: features of two widths.
    """
    _check_widths(len(a.mean), len(b.mean))
    count = a.count + b.count
    share, apart = 1.0 / max(count, 1), a.mean - b.mean
    scatter = a.scatter + b.scatter + np.outer(apart, apart) * (a.count * b.count * share)
    return Moments(count, (a.count * a.mean + b.count * b.mean) * share, scatter)


def fid(a: Moments, b: Moments) -> float:
    """Compute |mean_a - mean_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), covariances S with N - 1 (Heusel et al. 2017).

    With S = R R^T, of the symmetric eigenvalue problem, the last trace is the sum of the singular values of R_a^T R_b.
    Eigenvalues below rounding are dropped from R, so singular covariances (N <= D) cost no digits; the eigenvalues of
    the product S_a S_b, which torch-fidelity sums, have an error of 1e-16 whose root, 1e-8, enters up to D times.

    The value falls as N grows: compare only FIDs of equal counts. The order of `a` and `b`, of at least two features
    each, does not matter.

    Raises:
        ValueError: fewer features, or of two widths.
    """
    _check_widths(len(a.mean), len(b.mean))
    if min(a.count, b.count) < 2:
        raise ValueError(f"fid: got {a.count} and {b.count} features; allowed: two or more of each")
    covariance_a, covariance_b = a.scatter / (a.count - 1), b.scatter / (b.count - 1)
    shared = np.linalg.svd(_root(covariance_a).T @ _root(covariance_b), compute_uv=False).sum()
    apart = a.mean - b.mean
    return float(apart @ apart + np.trace(covariance_a) + np.trace(covariance_b) - 2.0 * shared)


def kid(
    generated: Tensor,
    real: Tensor,
    *,
    subsets: int = KID_SUBSETS,
    subset_size: int = KID_SUBSET_SIZE,
    seed: int = KID_SEED,
) -> KernelDistance:
    """Compute the unbiased squared MMD of the kernel (x . y / D + 1)^3 over random subsets (Binkowski et al. 2018).

    Subsets are drawn as torch-fidelity draws them, so equal seeds give its values; it computes in the features' dtype.

    Args:
        generated, real: [N, D] and [M, D], any real dtype.
        subsets: number of subsets of each side, each drawn without replacement.
        subset_size: 2 to min(N, M).

    Raises:
        ValueError: too few features for a subset, of two widths, or not finite.
    """
    _check_pair(generated, real)
    if subsets < 1 or not 2 <= subset_size <= min(len(generated), len(real)):
        got = f"{subsets} subsets of {subset_size} for {len(generated)} and {len(real)} features"
        raise ValueError(f"kid: got {got}; allowed: one or more of 2 to the smaller count")
    rng = np.random.RandomState(seed)
    distances = []
    for _ in range(subsets):
        x, y = (side[_drawn(rng, len(side), subset_size)].double() for side in (generated, real))
        distances.append(_squared_mmd(x, y))
    return KernelDistance(float(np.mean(distances)), float(np.std(distances)))


def precision_recall(
    generated: Tensor, real: Tensor, *, neighbours: int = NEIGHBOURS, block: int = BLOCK
) -> PrecisionRecall:
    """Compute the share of each side inside the balls of the other (Kynkaanniemi et al. 2019).

    The closed ball of a feature reaches its `neighbours`-th nearest neighbour on its own side. Equal features, such as
    those of a generator that repeats itself, are at distance exactly 0; in torch-fidelity it is rounding error.

    Args:
        generated, real: [N, D] and [M, D], any real dtype, more than `neighbours` on each side.
        block: side of the blocks of the distance matrix; it does not change the result.

    Raises:
        ValueError: not more than `neighbours` features on a side, of two widths, or not finite.
    """
    _check_pair(generated, real)
    if not 1 <= neighbours < min(len(generated), len(real)):
        got = f"neighbours={neighbours} for {len(generated)} and {len(real)} features"
        raise ValueError(f"precision_recall: got {got}; allowed: from 1, with more features than that on each side")
    precision = _inside(generated, real, neighbours, block)
    return PrecisionRecall(precision, _inside(real, generated, neighbours, block))


def _root(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return R [D, rank] with R R^T = covariance; eigenvalues below numpy's bound for rounding are dropped."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
    return vectors[:, kept] * np.sqrt(values[kept])


def _drawn(rng: np.random.RandomState, count: int, size: int) -> Tensor:
    return torch.from_numpy(rng.choice(count, size, replace=False))


def _squared_mmd(x: Tensor, y: Tensor) -> float:
    """Compute the unbiased squared MMD of x, y [m, D]: a feature is not compared with itself."""
    m = len(x)
    within = sum(kernel.sum() - kernel.trace() for kernel in (_kernel(x, x), _kernel(y, y)))
    return float(within / (m * (m - 1)) - 2.0 * _kernel(x, y).mean())


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1.0) ** 3


def _inside(queries: Tensor, centres: Tensor, neighbours: int, block: int) -> float:
    """Return the share of queries inside the ball of any centre."""
    radii = torch.cat([_squared_radii(rows, centres, neighbours, block) for rows in centres.split(block)])
    hits = 0
    for rows in queries.split(block):
        hit = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        for some, radius in zip(centres.split(block), radii.split(block), strict=True):
            hit |= (_squared_distances(rows, some) <= radius).any(dim=1)
        hits += int(hit.sum())
    return hits / len(queries)


def _squared_radii(rows: Tensor, centres: Tensor, neighbours: int, block: int) -> Tensor:
    """Return the squared distance of each row to its `neighbours`-th nearest centre, not counting the row itself."""
    nearest = torch.empty(len(rows), 0, dtype=torch.float64, device=rows.device)
    for some in centres.split(block):
        nearest = torch.cat([nearest, _squared_distances(rows, some)], dim=1)
        nearest = nearest.topk(min(neighbours + 1, nearest.shape[1]), dim=1, largest=False).values
    return nearest[:, -1]


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Compute squared distances by matrix products; those within their rounding error count as 0."""
    x, y = x.double(), y.double()
    squares = x.square().sum(dim=1)[:, None] + y.square().sum(dim=1)
    apart = squares - 2.0 * (x @ y.T)
    return apart.where(apart > ROUNDING * squares, 0.0)


def _check(features: Tensor) -> None:
    if features.ndim != 2:
        raise ValueError(f"features: got {list(features.shape)}; allowed: [N, D]")
    if not features.isfinite().all():
        raise ValueError("features: got values that are not finite; allowed: finite values")


def _check_pair(generated: Tensor, real: Tensor) -> None:
    _check(generated)
    _check(real)
    _check_widths(generated.shape[1], real.shape[1])


def _check_widths(a: int, b: int) -> None:
    if a != b:
        raise ValueError(f"features: got widths {a} and {b}; allowed: equal ones")
