"""Splits for data sets published without: 80 % training, 10 % validation, 10 % test (appendix B, Data Splits)."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}
ALIASES = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev"), "test": ("test", "testing")}
"""Names of splits in files and folders."""
SPLIT_NAMES = {alias: split for split, aliases in ALIASES.items() for alias in aliases}


def split_called(name: str) -> str | None:
    """Return the split that a folder or file of this name holds, in any case; None = no name of a split."""
    return SPLIT_NAMES.get(name.casefold())


def split_numbers(count: int, seed: int) -> dict[str, NDArray[np.int64]]:
    """Partition 0..count-1 at random into splits, int64, ascending; training gets the remainder of rounding.

    For multi-view data, number the objects instead of the rows, so that no object is in two splits.
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
    """Partition names like `split_numbers`, independent of their order."""
    ordered = sorted(names)
    return {split: [ordered[i] for i in numbers] for split, numbers in split_numbers(len(ordered), seed).items()}


def split_of(name: str, seed: int) -> str:
    """Assign a name to a split by its hash, without knowing the others; shares hold on average."""
    at = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "big") / 2**64
    return "train" if at < SHARES["train"] else "val" if at < SHARES["train"] + SHARES["val"] else "test"
