"""Splits of data sets whose authors made none: 80 % training, 10 % validation, 10 % test (appendix B, Data Splits)."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
"""What splits are called in the names of files and folders."""


def split_numbers(count: int, seed: int) -> dict[str, NDArray[np.int64]]:
    """A random part of the numbers 0..count-1 for each split, int64, ascending; together all of them, each once.

    Sizes are the shares rounded, and what is over is for training. Of a multi-view set, number the objects, not the
    rows, so that no object is in two splits.
    """
    drawn = np.random.default_rng([seed, *b"splits"]).permutation(count)
    val, test = (round(count * SHARES[name]) for name in ("val", "test"))
    train = count - val - test
    return {
        "train": np.sort(drawn[:train]),
        "val": np.sort(drawn[train : train + val]),
        "test": np.sort(drawn[train + val :]),
    }


def split_names(names: Sequence[str], seed: int) -> dict[str, list[str]]:
    """`split_numbers` of names, which are sorted first: the order in which they were listed does not matter."""
    ordered = sorted(names)
    return {split: [ordered[i] for i in numbers] for split, numbers in split_numbers(len(ordered), seed).items()}


def split_of(name: str, seed: int) -> str:
    """The split of one name by its hash, where nobody knows all names: shares hold on average."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    at = int.from_bytes(digest[:8], "big") / 2**64
    return "train" if at < SHARES["train"] else "val" if at < SHARES["train"] + SHARES["val"] else "test"
