import numpy as np
import pytest
from scipy import stats

from soda_dist.data.views.addressed import normals, uniforms, words

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def mixed(x: int) -> int:
    """splitmix64's finaliser in whole numbers."""
    x ^= x >> 30
    x = x * 0xBF58476D1CE4E5B9 & MASK
    x ^= x >> 27
    x = x * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


def test_words_are_the_published_generator_started_at_a_hash_of_the_address() -> None:
    assert mixed(GOLDEN) == 0xE220A8397B1DCDAF  # splitmix64's first output from state 0
    epochs, keys = np.array([0, 3, 3, 2**40]), np.array([0, 7, -1, 2**62])
    got = words(5, "a", epochs, keys, range(2, 6))
    root = int(words(5, "a", 0, np.array([0]), range(1))[0, 0])
    roots = [r for r in (_root(5, "a"),) if mixed(mixed(mixed(r)) + GOLDEN & MASK) == root]
    for i, (epoch, key) in enumerate(zip(epochs.tolist(), keys.tolist(), strict=True)):
        stream = mixed(mixed(roots[0] + epoch * GOLDEN & MASK) + key * GOLDEN & MASK)
        assert got[i].tolist() == [mixed(stream + (number + 1) * GOLDEN & MASK) for number in range(2, 6)]


def _root(seed: int, purpose: str) -> int:
    from hashlib import blake2b

    return int.from_bytes(blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest(), "little")


def test_a_draw_depends_on_its_address_alone() -> None:
    keys, epochs = np.arange(100), np.arange(100) % 7
    whole = uniforms(1, "crop", epochs, keys, range(20))
    for start, stop in ((0, 1), (13, 14), (40, 100)):
        part = uniforms(1, "crop", epochs[start:stop], keys[start:stop], range(3, 20))
        assert np.array_equal(part, whole[start:stop, 3:])
    gauss = normals(1, "crop", epochs, keys, range(20))
    assert np.array_equal(normals(1, "crop", epochs[50:51], keys[50:51], range(4, 5)), gauss[50:51, 4:5])


@pytest.mark.parametrize("other", [(2, "a", 0), (1, "b", 0), (1, "a", 1)])
def test_other_seed_purpose_or_epoch_gives_other_numbers(other: tuple[int, str, int]) -> None:
    keys = np.arange(4000)
    one = uniforms(1, "a", 0, keys, range(3))
    two = uniforms(*other, keys, range(3))
    assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 0.04
    assert not np.intersect1d(one, two).size


def test_uniforms_are_even_and_unrelated_along_every_axis() -> None:
    u = np.stack([uniforms(3, "even", epoch, np.arange(2000), range(4)) for epoch in range(4)])
    assert u.min() >= 0
    assert u.max() < 1
    assert stats.kstest(u.ravel(), "uniform").pvalue > 1e-3
    for axis in range(3):
        left, right = np.delete(u, 0, axis).ravel(), np.delete(u, -1, axis).ravel()
        table = np.histogram2d(left, right, bins=8, range=[[0, 1], [0, 1]])[0]
        assert stats.chisquare(table.ravel()).pvalue > 1e-3


def test_low_bits_are_as_random_as_high_ones() -> None:
    bits = np.unpackbits(words(0, "bits", 0, np.arange(20000), range(1)).view(np.uint8).reshape(-1, 8), axis=1)
    assert np.abs(bits.mean(0) - 0.5).max() < 0.02


def test_normals_are_standard_normal_and_finite() -> None:
    x = normals(0, "noise", 0, np.arange(20000), range(2)).ravel()
    assert np.isfinite(x).all()
    assert stats.kstest(x, "norm").pvalue > 1e-3
    assert abs(stats.kurtosis(x)) < 0.15
