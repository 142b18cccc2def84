"""Which rows of a split are taken where a limit leaves some: a seeded draw over all of it.

Data sets keep their files' order, which is often sorted by class, factor or object, so the first rows of a split stand
for nothing but themselves.
"""

import numpy as np
from numpy.typing import NDArray

from soda_dist.evaluation.views import PURPOSE
from soda_dist.training.randomness import mix64


def drawn_order(count: int, seed: int, split: str, *address: int) -> NDArray[np.int64]:
    """Permute 0..count-1 as a function of the arguments; `address`: of a part of the split, such as an object."""
    return np.random.default_rng(mix64(seed, PURPOSE, *split.encode(), *address)).permutation(count)


def drawn_rows(count: int, limit: int | None, seed: int, split: str) -> NDArray[np.int64]:
    """Draw `limit` of the rows 0..count-1 without replacement, ascending; None or more than `count` = all.

    They are the beginning of one permutation of the split, so a larger limit contains a smaller one.
    """
    if limit is None or limit >= count:
        return np.arange(count)
    return np.sort(drawn_order(count, seed, split)[:limit])
