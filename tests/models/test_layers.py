"""Group norm, attention and initialisation against slow references."""

import math

import pytest
import torch
from torch import Tensor

from soda_dist.models.layers import GroupNorm, SelfAttention, group_count, group_norm, lecun_normal_, rescaled


def slow_group_norm(x: Tensor, groups: int) -> Tensor:
    """float64, one group at a time."""
    x = x.double()
    out = torch.empty_like(x)
    size = x.shape[1] // groups
    for b in range(x.shape[0]):
        for g in range(groups):
            part = x[b, g * size : (g + 1) * size]
            mean = part.mean()
            out[b, g * size : (g + 1) * size] = (part - mean) / ((part - mean).square().mean() + 1e-5).sqrt()
    return out


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(64, 32), (128, 32), (192, 32), (96, 32), (48, 16), (32, 16), (24, 8), (16, 8), (8, 4), (25, 1), (1, 1), (2, 1)],
)
def test_group_counts(channels, groups):
    assert group_count(channels) == groups


def feature(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator) * 3 + torch.randn(shape[1], 1, 1, generator=generator) * 2


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_group_norm_with_an_affine_for_each_sample(memory):
    x = feature(3, 12, 5, 4).to(memory_format=memory)
    scale, shift = torch.randn(3, 12), torch.randn(3, 12)
    expected = slow_group_norm(x, 4) * scale.double()[:, :, None, None] + shift.double()[:, :, None, None]
    torch.testing.assert_close(group_norm(x, 4, scale, shift).double(), expected, rtol=1e-4, atol=1e-5)


def test_group_norm_has_the_gradients_of_the_formula():
    x, scale, shift = feature(2, 6, 3, 3).double(), torch.randn(2, 6).double(), torch.randn(2, 6).double()
    inputs = [tensor.requires_grad_() for tensor in (x, scale, shift)]
    assert torch.autograd.gradcheck(lambda x, scale, shift: group_norm(x, 3, scale, shift), inputs)


def test_plain_group_norm_and_its_relu():
    x = feature(2, 8, 4, 4)
    for act in (False, True):
        norm = GroupNorm(8, act=act)
        with torch.no_grad():
            norm.weight.copy_(torch.linspace(-1, 1, 8))
            norm.bias.copy_(torch.linspace(1, -1, 8))
        expected = slow_group_norm(x, 4) * norm.weight.double()[:, None, None] + norm.bias.double()[:, None, None]
        expected = expected.clamp_min(0) if act else expected
        torch.testing.assert_close(norm(x).double(), expected, rtol=1e-4, atol=1e-5)


def test_group_norms_keep_bf16_under_autocast():
    x = feature(2, 8, 8, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        modulated, plain = group_norm(x, 4, torch.ones(2, 8), torch.zeros(2, 8)), GroupNorm(8, act=False)(x)
    assert modulated.dtype == plain.dtype == torch.bfloat16
    for y in (modulated, plain):
        torch.testing.assert_close(y.double(), slow_group_norm(x, 4), rtol=2**-7, atol=2**-8)


def test_attention_equals_softmax_written_out():
    torch.manual_seed(0)
    attention = SelfAttention(channels=12, head_dim=4)
    x = feature(2, 12, 3, 5)
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.copy_(torch.randn(parameter.shape))
        normed = slow_group_norm(x, 4)
        normed = normed * attention.norm.weight.double()[:, None, None] + attention.norm.bias.double()[:, None, None]
        expected = torch.empty(2, 12, 15, dtype=torch.float64)
        for b in range(2):
            tokens = normed[b].reshape(12, 15).T
            q, k, v = (tokens @ attention.qkv.weight.double().T + attention.qkv.bias.double()).split(12, 1)
            heads = []
            for h in range(3):
                part = slice(4 * h, 4 * h + 4)
                scores = q[:, part] @ k[:, part].T / math.sqrt(4)
                weights = scores.exp() / scores.exp().sum(1, keepdim=True)
                heads.append(weights @ v[:, part])
            mixed = torch.cat(heads, 1) @ attention.out.weight.double().T + attention.out.bias.double()
            expected[b] = (x[b].double().reshape(12, 15) + mixed.T) / math.sqrt(2)
        y = attention(x)
    torch.testing.assert_close(y.double(), expected.view(2, 12, 3, 5), rtol=1e-3, atol=1e-3)


def test_attention_moves_with_the_pixels_and_refuses_a_head_that_does_not_divide():
    torch.manual_seed(0)
    attention, x = SelfAttention(channels=8, head_dim=8), feature(1, 8, 4, 4)
    torch.testing.assert_close(attention(x.flip(3)), attention(x).flip(3), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="head_dim: got 3 with 8 channels"):
        SelfAttention(channels=8, head_dim=3)


def test_rescaled_residuals_keep_the_variance():
    generator = torch.Generator().manual_seed(0)
    x, branch = torch.randn(200_000, generator=generator), torch.randn(200_000, generator=generator)
    assert float(rescaled(x, branch).var()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("shape", [(400, 300), (64, 48, 3, 3)])
def test_initialisation_has_variance_one_over_fan_in_after_truncation(shape):
    torch.manual_seed(0)
    weight = lecun_normal_(torch.empty(shape))
    fan_in = math.prod(shape[1:])
    assert float(weight.var()) * fan_in == pytest.approx(1, abs=0.03)
    # Two standard deviations of the normal before truncation; 4.6% of it lay beyond, none is left.
    bound = 2 / 0.8796256610342398 / math.sqrt(fan_in)
    assert 0.99 * bound < float(weight.abs().max()) <= bound * (1 + 1e-6)
    assert float((weight.abs() > 0.9 * bound).double().mean()) < 0.04
    assert abs(float(weight.mean())) < 4 / math.sqrt(fan_in * weight.numel())
