"""Random numbers that are addressed, not inherited: a hash of where the number is used.

A number's address is (seed, purpose, epoch, key, number). The same address gives the same bits in any process, on any
machine and in any company, so neither workers nor batches decide what a sample looks like. The mixer is splitmix64's:
a bijection of 64 bits, so two keys of one epoch never share a stream.
"""

from functools import lru_cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Words = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S11, _S12 = (np.uint64(shift) for shift in (30, 27, 31, 11, 12))


def words(seed: int, purpose: str, epochs: Ints | int, keys: Ints, numbers: range) -> Words:
    """64 random bits for each address.

    Args:
        seed: of the run, any integer.
        purpose: what the numbers are for; other text, other numbers.
        epochs: int64 [n], or one for all.
        keys: int64 [n].
        numbers: which draws of each key's stream, from 0 on, step 1.

    Returns:
        uint64 [n, len(numbers)].
    """
    stream = _mix(_root(seed, purpose) + _word(epochs) * _GOLDEN)
    stream = _mix(stream + _word(keys) * _GOLDEN)
    counter = np.arange(numbers.start + 1, numbers.stop + 1, dtype=np.uint64) * _GOLDEN
    return _mix(stream[:, None] + counter)


def uniforms(seed: int, purpose: str, epochs: Ints | int, keys: Ints, numbers: range) -> Floats:
    """float64 [n, len(numbers)], uniform on [0, 1), multiples of 2^-53; arguments as `words`."""
    return (words(seed, purpose, epochs, keys, numbers) >> _S11).astype(np.float64) * 2.0**-53


def normals(seed: int, purpose: str, epochs: Ints | int, keys: Ints, numbers: range) -> Floats:
    """float64 [n, len(numbers)], standard normal by the inverse distribution function; arguments as `words`."""
    # 52 bits and a half keep the argument inside (0, 1); with 53 the largest would round to 1.
    return ndtri(((words(seed, purpose, epochs, keys, numbers) >> _S12) + 0.5) * 2.0**-52)


@lru_cache(maxsize=64)
def _root(seed: int, purpose: str) -> Words:
    digest = blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()
    return np.frombuffer(digest, "<u8").astype(np.uint64)


def _word(values: Ints | int) -> Words:
    return np.atleast_1d(np.asarray(values, np.int64)).view(np.uint64)


def _mix(x: Words) -> Words:
    """splitmix64's finaliser, in place on a fresh array."""
    x ^= x >> _S30
    x *= _FIRST
    x ^= x >> _S27
    x *= _SECOND
    x ^= x >> _S31
    return x
