"""Counter-based random numbers: the hash in whole numbers, and that the draws are normal and independent."""

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from soda_dist.models.counter_hash import GOLDEN, mixed, normals, words
from soda_dist.training.randomness import mix64

COUNT = 4096


def streams_from(start: int, count: int) -> Tensor:
    return mixed(torch.arange(start, start + count))


def correlation(a: Tensor, b: Tensor) -> float:
    """In standard errors: about standard normal for independent draws."""
    return float((a.double() * b.double()).mean() * math.sqrt(a.numel()))


def test_words_and_the_mixer_are_the_documented_hash() -> None:
    index = torch.tensor([0, 7, 2**40 + 3])
    own = mixed(index, mix64(11) + GOLDEN)
    assert [value % 2**64 for value in own.tolist()] == [mix64(11, position) for position in index.tolist()]

    def mixer(x: int) -> int:
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        return x ^ x >> 31

    found = words(own, 4, 5)
    for row, stream in enumerate(own.tolist()):
        pairs = [mixer((stream + GOLDEN * 5 + k * 0xC2B2AE3D27D4EB4F) % 2**64) for k in (1, 2, 3)]
        expected = [half for pair in pairs for half in (pair & 0xFFFFFFFF, pair >> 32)]
        assert [word % 2**32 for word in found[row].tolist()] == expected[:5]


def test_normals_are_the_documented_transform() -> None:
    """Python's whole numbers and float64, one number at a time."""

    def wrapped(x: int) -> int:
        return (x + 2**31) % 2**32 - 2**31

    def cell(row: int, column: int) -> int:
        x = (row + column) % 2**32
        x = (x ^ x >> 16) * 0x7FEB352D % 2**32
        return wrapped((x ^ x >> 15) * 0x846CA68B)

    streams, count = streams_from(5, 2), 300
    drawn = normals(streams, 9, count)
    table = words(streams, 9, 64 + 6).tolist()
    for sample in range(2):
        bits = [cell(table[sample][64 + i // 64], table[sample][i % 64]) for i in range(6 * 64)]
        radius = [math.sqrt(-2 * math.log(((bits[i] & 0x7FFFFFFF) + 0.5) / 2**31)) for i in range(192)]
        angle = [bits[192 + i] * math.pi / 2**31 for i in range(192)]
        waves = [math.cos(a) for a in angle] + [math.sin(a) for a in angle]
        expected = torch.tensor([radius[i % 192] * wave for i, wave in enumerate(waves[:count])])
        torch.testing.assert_close(drawn[sample], expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("number", [0, 1, 40])
def test_draws_are_normal(number: int) -> None:
    drawn = normals(streams_from(100, 256), number, COUNT).double().flatten()
    size = drawn.numel()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((drawn**power).mean()) - moment) < 4 * math.sqrt(variance / size), power
    assert stats.kstest(drawn[::4].numpy(), "norm").pvalue > 1e-3
    beyond = int((drawn.abs() > 4.5).sum())
    expected = size * 2 * stats.norm.sf(4.5)
    assert abs(beyond - expected) < 4 * math.sqrt(expected), "the tail"
    squares = normals(streams_from(9, 4096), number, 256).double().square().sum(1)
    assert stats.kstest(squares.numpy(), "chi2", args=(256,)).pvalue > 1e-3, "the sum of a sample's squares"


def test_draws_are_independent_within_a_sample_and_over_samples_and_numbers() -> None:
    drawn = normals(streams_from(100, 128), 0, COUNT)
    for lag in (1, 2, 63, 64, 65, 128, COUNT // 2 - 1, COUNT // 2, COUNT // 2 + 1):
        assert abs(correlation(drawn[:, lag:], drawn[:, :-lag])) < 4, f"lag {lag}"
        unit = (drawn.square() - 1) / math.sqrt(2)
        assert abs(correlation(unit[:, lag:], unit[:, :-lag])) < 4, f"squares, lag {lag}"
    assert abs(correlation(drawn[1:], drawn[:-1])) < 4
    for number in (1, 2, 5):
        assert abs(correlation(drawn, normals(streams_from(100, 128), number, COUNT))) < 4, f"number {number}"
    for start in (101, 1100, 2**32 + 100, 2**50):
        assert abs(correlation(drawn, normals(streams_from(start, 128), 0, COUNT))) < 4, f"samples from {start}"


def test_no_two_rows_or_columns_of_the_hash_resemble_each_other() -> None:
    lines = normals(streams_from(3, 24), 0, 2 * COUNT).view(24, -1, 64).double()
    for table in (lines, lines.transpose(1, 2), (lines.square() - 1) / math.sqrt(2)):
        pairs = torch.einsum("brl,bsl->brs", table, table) / math.sqrt(table.shape[2])
        upper = torch.triu_indices(table.shape[1], table.shape[1], 1)
        spread = pairs[:, upper[0], upper[1]]
        assert abs(float(spread.var()) - 1) < 5 * math.sqrt(3 / spread.numel())
    for step in (1, 2, 5, 32):
        corners = lines[:, :-1, :-step] * lines[:, 1:, :-step] * lines[:, :-1, step:] * lines[:, 1:, step:]
        assert abs(float(corners.mean())) * math.sqrt(corners.numel()) < 4


def test_a_bit_of_the_stream_changes_half_of_the_words() -> None:
    base = words(streams_from(0, 64), 0, 64)
    for bit in (0, 1, 31, 32, 62):
        other = words(mixed(torch.arange(64) ^ (1 << bit)), 0, 64)
        flipped = sum(((base ^ other) >> k & 1).double().mean().item() for k in range(32)) / 32
        assert abs(flipped - 0.5) < 4 * 0.5 / math.sqrt(base.numel() * 32), bit


def test_blocks_of_a_cpu_decide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = streams_from(0, 37)
    whole = normals(streams, 2, 500)
    monkeypatch.setattr("soda_dist.models.counter_hash._CACHED", 1)
    assert torch.equal(normals(streams, 2, 500), whole)
    assert normals(streams, 2, 0).shape == (37, 0)
