"""Counter-based random numbers: a hash of the address (seed, purpose, epoch, key, number).

The same address gives the same bits in any process and on any machine, so views depend on neither workers nor batches.
The mixer is that of splitmix64, a bijection of 64 bits, so two keys of one epoch never share a stream.
"""

from functools import lru_cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Words = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S11, _S12 = (np.uint64(shift) for shift in (30, 27, 31, 11, 12))


def words(seed: int, purpose: str, epochs: Ints | int, keys: Ints, numbers: range) -> Words:
    """Return 64 random bits per address.

    Args:
        seed: the run's seed, any integer.
        purpose: name of the stream.
        epochs: int64 [n], or one for all.
        keys: int64 [n].
        numbers: draws of each key's stream; start >= 0, step 1.

    Returns:
        uint64 [n, len(numbers)].
    """
    stream = _mix(_root(seed, purpose) + _word(epochs) * _GOLDEN)
    stream = _mix(stream + _word(keys) * _GOLDEN)
    counter = np.arange(numbers.start + 1, numbers.stop + 1, dtype=np.uint64) * _GOLDEN
    return _mix(stream[:, None] + counter)


def uniforms(seed: int, purpose: str, epochs: Ints | int, keys: Ints, numbers: range) -> Floats:
    """Return float64 [n, len(numbers)], uniform on [0, 1), multiples of 2^-53; arguments as in `words`."""
    return (words(seed, purpose, epochs, keys, numbers) >> _S11).astype(np.float64) * 2.0**-53


def normals(seed: int, purpose: str, epochs: Ints | int, keys: Ints, numbers: range) -> Floats:
    """Return float64 [n, len(numbers)], standard normal by the inverse CDF; arguments as in `words`."""
    from scipy.special import ndtri

    # 52 bits plus a half keep the argument inside (0, 1); with 53 bits the largest would round to 1.
    return ndtri(((words(seed, purpose, epochs, keys, numbers) >> _S12) + 0.5) * 2.0**-52)


@lru_cache(maxsize=64)
def _root(seed: int, purpose: str) -> Words:
    digest = blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()
    return np.frombuffer(digest, "<u8").astype(np.uint64)


def _word(values: Ints | int) -> Words:
    return np.atleast_1d(np.asarray(values, np.int64)).view(np.uint64)


def _mix(x: Words) -> Words:
    """Apply splitmix64's finaliser in place."""
    x ^= x >> _S30
    x *= _FIRST
    x ^= x >> _S27
    x *= _SECOND
    x ^= x >> _S31
    return x
