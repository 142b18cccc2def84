"""Aggregation against loops in float64: of the sources that are there, and nothing of those that are not."""

import math

import pytest
import torch
from torch import Tensor, nn

from soda_dist.models.aggregation import MeanAggregation, TransformerAggregation

DIM, HEADS = 12, 2
PRESENT = torch.tensor(
    [[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 1], [0, 1, 1, 1], [1, 0, 0, 0]], dtype=torch.bool
)  # fmt: skip
GARBAGE = (0.0, 1e30, math.inf, -math.inf, math.nan)


def latents(present: Tensor = PRESENT, garbage: float = math.nan) -> Tensor:
    z = torch.randn(*present.shape, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z[~present] = garbage
    return z


def transformer() -> TransformerAggregation:
    torch.manual_seed(1)
    made = TransformerAggregation(latent_dim=DIM, depth=2, heads=HEADS, multiplier=4).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def normalised(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias


def layer_by_hand(x: Tensor, layer: nn.TransformerEncoderLayer) -> Tensor:
    """[S, D], all of them present."""
    h = normalised(x, layer.norm1)
    weights, biases = layer.self_attn.in_proj_weight.chunk(3), layer.self_attn.in_proj_bias.chunk(3)
    q, k, v = (h @ weight.T + bias for weight, bias in zip(weights, biases, strict=True))
    heads = []
    for part in torch.arange(DIM).split(DIM // HEADS):
        scores = (q[:, part] @ k[:, part].T / math.sqrt(DIM // HEADS)).exp()
        heads.append(scores / scores.sum(1, keepdim=True) @ v[:, part])
    out = layer.self_attn.out_proj
    x = x + torch.cat(heads, 1) @ out.weight.T + out.bias
    h = normalised(x, layer.norm2) @ layer.linear1.weight.T + layer.linear1.bias
    h = h * (1 + torch.erf(h / math.sqrt(2))) / 2
    return x + h @ layer.linear2.weight.T + layer.linear2.bias


def test_the_mean_is_over_those_present():
    z = latents()
    found = MeanAggregation()(z, PRESENT)
    for row in range(len(z)):
        there = [z[row, slot] for slot in range(4) if PRESENT[row, slot]]
        torch.testing.assert_close(found[row], sum(there) / len(there), rtol=1e-12, atol=1e-12)
    assert torch.equal(found[2], z[2, 3]) and torch.equal(found[4], z[4, 0])


def test_a_mean_of_cells_is_each_cells():
    z = latents()[:, :, None].repeat(1, 1, 5, 1) * torch.arange(1, 6)[:, None]
    found = MeanAggregation()(z, PRESENT)
    assert found.shape == (5, 5, DIM)
    torch.testing.assert_close(found, MeanAggregation()(latents(), PRESENT)[:, None] * torch.arange(1, 6)[:, None])


def test_the_transformer_is_what_it_is_by_hand():
    made, z = transformer(), latents()
    found = made(z, PRESENT)
    for row in range(len(z)):
        x = z[row, PRESENT[row]]
        for layer in made.layers if len(x) > 1 else ():  # a single latent stays as it is
            x = layer_by_hand(x, layer)
        torch.testing.assert_close(found[row], x.mean(0), rtol=1e-9, atol=1e-9)


def test_its_size_is_tables_12():
    made = TransformerAggregation(latent_dim=64, depth=2, heads=4, multiplier=4)
    attention, hidden, norms = 4 * (64 * 64 + 64), 64 * 256 + 256 + 256 * 64 + 64, 4 * 64
    assert sum(p.numel() for p in made.parameters()) == 2 * (attention + hidden + norms)
    assert {layer.self_attn.num_heads for layer in made.layers} == {4}
    first, second = (layer.linear1.weight for layer in made.layers)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("kind", [MeanAggregation, transformer])
def test_the_order_of_sources_does_not_matter(kind):
    made, z = kind(), latents()
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(made(z[:, order], PRESENT[:, order]), made(z, PRESENT), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", [MeanAggregation, transformer])
def test_each_present_source_matters(kind):
    made, z = kind(), latents(garbage=0).requires_grad_()
    (gradient,) = torch.autograd.grad(made(z, PRESENT).square().sum(), z)
    assert torch.equal((gradient != 0).any(2), PRESENT)


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("kind", [MeanAggregation, transformer])
def test_absent_slots_do_not_matter_whatever_they_hold(kind, garbage):
    made, z = kind(), latents(garbage=garbage).requires_grad_()
    found, expected = made(z, PRESENT), made(latents(garbage=1.0), PRESENT)
    assert torch.equal(found, expected)
    inputs = (z, *made.parameters())
    for gradient in torch.autograd.grad(found.square().sum(), inputs):
        assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("kind", [MeanAggregation, transformer])
def test_padding_does_not_matter(kind):
    made, z = kind(), latents()
    padded = made(z, PRESENT)
    for row in range(len(z)):
        alone = z[row, PRESENT[row]][None]
        torch.testing.assert_close(
            made(alone, torch.ones(alone.shape[:2], dtype=torch.bool)), padded[row : row + 1], rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize("low", [False, True])
def test_eval_mode_computes_what_training_does(low):
    """With and without gradients: torch has kernels of its own for eval mode."""
    made, z = transformer().float(), latents().float()
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        expected = made.train()(z, PRESENT)
        with torch.no_grad():
            found = made.eval()(z, PRESENT)
    assert found.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02 if low else 1e-6)


@pytest.mark.parametrize("kind", [MeanAggregation, transformer])
def test_it_computes_under_autocast(kind):
    made = kind().float()
    z = latents().float().requires_grad_()
    expected = made(z, PRESENT)
    with torch.autocast("cpu", torch.bfloat16):
        low = made(z, PRESENT)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, expected, rtol=0, atol=0.03)
    low.square().sum().backward()
    assert bool(z.grad.isfinite().all())
    assert all(p.grad.dtype == torch.float32 and bool(p.grad.isfinite().all()) for p in made.parameters())


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="heads: got 5 with latent_dim 12; allowed: divisors"):
        TransformerAggregation(latent_dim=12, depth=1, heads=5, multiplier=4)
    with pytest.raises(ValueError, match=r"z: got \[5, 4, 1, 12\]; allowed: \[B, S, D\]"):
        transformer()(latents()[:, :, None], PRESENT)
