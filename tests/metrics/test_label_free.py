"""Retrieval and effective rank on perfect, useless, duplicated and collapsed latents."""

import math

import pytest
import torch

from soda_dist.metrics import label_free
from soda_dist.metrics.label_free import collapse, effective_rank, measure, retrieval


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_perfect_latents_find_every_view_at_any_scale() -> None:
    one = normal(200, 8)
    assert retrieval(one, one * torch.linspace(0.1, 9, 200)[:, None]) == 1.0
    assert collapse(measure(one, one)) is None


def test_useless_latents_are_at_chance() -> None:
    found = retrieval(normal(2000, 8), normal(2000, 8, seed=1))
    assert found == pytest.approx(1 / 2000, abs=4 * math.sqrt(1 / 2000 / 2000))
    assert "times chance" in (collapse(measure(normal(2000, 8), normal(2000, 8, seed=1))) or "")


def test_a_part_that_is_swapped_is_not_found() -> None:
    one = normal(100, 16)
    other = one.clone()
    other[:20] = one[:20].roll(1, 0)
    assert retrieval(one, other) == 0.8


def test_duplicates_share_the_hit() -> None:
    one = normal(50, 8).repeat(2, 1)
    assert retrieval(one, one) == 0.5


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_collapsed_latents_are_told(value: float) -> None:
    one = torch.full((64, 8), value)
    scores = measure(one, one)
    assert scores["retrieval"] == pytest.approx(1 / 64) and scores["effective_rank"] == 0
    assert "effective rank 0.00 of 8" in (collapse(scores) or "")


def test_the_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = normal(100, 4), normal(100, 4) + normal(100, 4, seed=2) / 2
    whole = retrieval(one, other)
    monkeypatch.setattr(label_free, "BLOCK", 7)
    assert 0 < whole < 1 and retrieval(one, other) == pytest.approx(whole)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_equal_directions_are_counted(rank: int) -> None:
    """Orthogonal, centred columns of equal length have equal singular values."""
    angles = torch.arange(64)[:, None] * torch.arange(1, 9) * 2 * math.pi / 64
    latents = torch.cos(angles)[:, :rank] @ torch.eye(8)[:rank] + 100
    assert effective_rank(latents) == pytest.approx(rank, rel=1e-3)


def test_unequal_directions_count_by_their_entropy() -> None:
    angles = torch.arange(64)[:, None] * torch.arange(1, 3) * 2 * math.pi / 64
    latents = torch.cos(angles).double() * torch.tensor([3.0, 1.0])
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert effective_rank(latents) == pytest.approx(expected)


def test_arrays_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match="two equal"):
        retrieval(normal(3, 4), normal(4, 4))
