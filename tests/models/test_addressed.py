"""Addressed dropout: what the masks depend on, and that they are as random as dropout needs."""

import math

import pytest
import torch
from torch import Tensor, nn

from soda_dist.models.layers import AddressedDropout, AddressedDropPath, addressed, number_modules

LANES = 128


def numbered(rate: float, number: int = 0, kind: type = AddressedDropout) -> nn.Module:
    module = kind(rate)
    module.number = number
    return module


def dropped(seeds: Tensor, shape: tuple[int, ...], *, rate: float = 0.1, number: int = 3) -> Tensor:
    """float64 [B, elements], 1 where dropped."""
    with addressed(seeds):
        y = numbered(rate, number)(torch.ones(len(seeds), *shape))
    return (y == 0).flatten(1).double()


def seeds_from(start: int, count: int, stride: int = 1) -> Tensor:
    return torch.arange(count, dtype=torch.int64) * stride + start


def test_a_mask_is_the_documented_hash():
    """Python's whole numbers, one element at a time."""

    def mixed(x: int) -> int:
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        return x ^ x >> 31

    def is_dropped(seed: int, number: int, element: int, rate: float) -> bool:
        key = mixed(seed % 2**64) + 0x9E3779B97F4A7C15 * (number + 1)

        def word(index: int) -> int:
            pair = mixed((key + (index // 2 + 1) * 0xC2B2AE3D27D4EB4F) % 2**64)
            return pair >> 32 * (index % 2) & 0xFFFFFFFF

        row, column = element // LANES, element % LANES // 2
        cell = (word(64 + row) + word(column)) % 2**32
        high = cell >> 16 if cell < 2**31 else cell >> 16 | 0xFFFF0000
        cell = (cell ^ high) * (2**32 - 2048144789) % 2**32
        lane = cell >> 16 * (element % 2) & 0xFFFF
        signed = lane - 2**16 if lane >= 2**15 else lane
        return signed < round(rate * 2**16) - 2**15

    seeds = torch.tensor([0, 1, -5, 2**62 + 12345])
    masks = dropped(seeds, (3, 11, 13), rate=0.3, number=7)
    for sample, seed in enumerate(seeds.tolist()):
        expected = [is_dropped(seed, 7, element, 0.3) for element in range(3 * 11 * 13)]
        assert masks[sample].bool().tolist() == expected


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5, 0.9])
def test_rate_and_scale(rate):
    seeds = seeds_from(100, 32)
    masks = dropped(seeds, (64, 16, 16), rate=rate)
    assert abs(float(masks.mean()) - rate) < 4 * math.sqrt(rate * (1 - rate) / masks.numel())
    with addressed(seeds):
        y = numbered(rate, 3)(torch.full((32, 64, 16, 16), 2.0))
    assert y.unique().tolist() == pytest.approx([0, 2 / (1 - rate)], rel=1e-3)
    # As many per sample, per row of the hash and per column as independent draws would give.
    for axis in (masks, masks.view(32, -1, LANES).transpose(0, 1), masks.view(32, -1, LANES).transpose(0, 2)):
        z = (axis.flatten(1).mean(1) - rate) / math.sqrt(rate * (1 - rate) / axis[0].numel())
        assert 0.4 < float(z.square().mean()) < 1.8 and float(z.abs().max()) < 5


def correlation(a: Tensor, b: Tensor, rate: float = 0.1) -> float:
    """In standard errors: about standard normal for independent masks."""
    return float(((a - rate) * (b - rate)).mean() / (rate * (1 - rate)) * math.sqrt(a.numel()))


def test_masks_are_uncorrelated_in_space_over_channels_samples_modules_and_seeds():
    masks = dropped(seeds_from(5, 32), (64, 16, 16))
    for lag in (1, 2, 3, 15, 16, 17, 64, 127, 128, 129, 255, 256, 257, 4096):
        assert abs(correlation(masks[:, lag:], masks[:, :-lag])) < 4, f"lag {lag}"
    assert abs(correlation(masks[1:], masks[:-1])) < 4
    for other in (1, 2, 32, 2**31, 2**32, 2**40, 2**61):
        assert abs(correlation(masks, dropped(seeds_from(5 + other, 32), (64, 16, 16)))) < 4, f"seed + {other}"
    for number in (0, 2, 4, 103):
        assert abs(correlation(masks, dropped(seeds_from(5, 32), (64, 16, 16), number=number))) < 4, f"module {number}"
    for number, seed in ((4, 4), (4, 6), (2, 6)):
        assert abs(correlation(masks, dropped(seeds_from(seed, 32), (64, 16, 16), number=number))) < 4


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_no_two_rows_or_columns_of_the_hash_resemble_each_other(rate):
    """The spread of the correlations of all pairs, and of rectangles, which a sum of row and column would give away."""
    masks = dropped(seeds_from(77, 24), (64, 16, 16), rate=rate).view(24, -1, LANES)
    unit = (masks - rate) / math.sqrt(rate * (1 - rate))
    for lines in (unit, unit.transpose(1, 2)):
        pairs = torch.einsum("brl,bsl->brs", lines, lines) / math.sqrt(lines.shape[2])
        upper = torch.triu_indices(lines.shape[1], lines.shape[1], 1)
        spread = pairs[:, upper[0], upper[1]]
        assert abs(float(spread.var()) - 1) < 5 * math.sqrt(3 / spread.numel())
        assert float(spread.abs().max()) < 9
    for step in (1, 2, 5, 32):
        corners = unit[:, :-1, :-step] * unit[:, 1:, :-step] * unit[:, :-1, step:] * unit[:, 1:, step:]
        assert abs(float(corners.mean())) * math.sqrt(corners.numel()) < 4


@pytest.mark.parametrize("kind", [AddressedDropout, AddressedDropPath])
def test_the_split_of_a_batch_and_the_memory_order_decide_nothing(kind):
    module = numbered(0.4, 2, kind)
    x = torch.randn(8, 6, 5, 3, generator=torch.Generator().manual_seed(0))
    seeds = seeds_from(11, 8, 7919)
    with addressed(seeds):
        whole = module(x)
        strided = module(x.to(memory_format=torch.channels_last))
    parts = []
    for part in (slice(0, 3), slice(3, 8)):
        with addressed(seeds[part]):
            parts.append(module(x[part]))
    assert torch.equal(whole, torch.cat(parts)) and torch.equal(whole, strided)
    with addressed(seeds.flip(0)):
        assert torch.equal(module(x.flip(0)), whole.flip(0))


def test_gradients_pass_where_elements_do():
    x = torch.randn(4, 5, 6, 6, requires_grad=True)
    with addressed(seeds_from(0, 4)):
        y = numbered(0.25)(x)
    y.backward(torch.ones_like(y))
    torch.testing.assert_close(x.grad, y.detach() / x.detach())


def test_bf16_keeps_its_dtype_and_an_unbiased_scale():
    x = torch.full((64, 4096), 3.0, dtype=torch.bfloat16)
    with addressed(seeds_from(1, 64)):
        y = numbered(0.1)(x)
    # 3 / 0.9 is within bf16's rounding, 2**-8; a scale rounded to bf16 first would be off by more.
    assert y.dtype == torch.bfloat16 and float(y.max()) == float(torch.tensor(3 / 0.9).bfloat16())


def test_drop_path_drops_whole_samples_at_its_rate():
    count = 4096
    with addressed(seeds_from(0, count)):
        y = numbered(0.1, 0, AddressedDropPath)(torch.ones(count, 2, 3))
    flat = y.flatten(1)
    assert torch.equal(flat.amin(1), flat.amax(1)) and float(flat.max()) == pytest.approx(1 / 0.9, rel=1e-4)
    assert abs(float((flat[:, 0] == 0).double().mean()) - 0.1) < 4 * math.sqrt(0.09 / count)


@pytest.mark.parametrize("kind", [AddressedDropout, AddressedDropPath])
def test_without_addresses_the_global_generator_draws(kind):
    module, x = kind(0.5), torch.ones(4000, 1)
    torch.manual_seed(0)
    first, second = module(x), module(x)
    torch.manual_seed(0)
    assert torch.equal(module(x), first) and not torch.equal(first, second)
    assert first.unique().tolist() == [0, 2] and abs(float(first.mean()) - 1) < 4 / math.sqrt(4000)


@pytest.mark.parametrize("kind", [AddressedDropout, AddressedDropPath])
def test_evaluation_and_rate_zero_change_nothing(kind):
    x = torch.randn(3, 4)
    with addressed(seeds_from(0, 3)):
        assert torch.equal(kind(0.5).eval()(x), x) and torch.equal(kind(0.0)(x), x)


def test_modules_are_numbered_in_order_and_shared_ones_once():
    shared = AddressedDropout(0.1)
    model = nn.Sequential(shared, nn.Sequential(nn.ReLU(), AddressedDropPath(0.1)), shared, AddressedDropout(0.2))
    assert number_modules(model) == 3
    assert [shared.number, model[1][1].number, model[3].number] == [0, 1, 2]


def test_contexts_nest_and_end_with_an_error_too():
    module, x = numbered(0.5), torch.ones(2, 1000)
    with addressed(seeds_from(0, 2)):
        outer = module(x)
        with pytest.raises(KeyError), addressed(seeds_from(9, 2)):
            assert not torch.equal(module(x), outer)
            raise KeyError
        assert torch.equal(module(x), outer)
    torch.manual_seed(0)
    assert not torch.equal(module(x), outer)


def test_wrong_use_is_refused():
    with pytest.raises(RuntimeError, match="number_modules"), addressed(seeds_from(0, 2)):
        AddressedDropout(0.5)(torch.ones(2, 3))
    with pytest.raises(ValueError, match="2 seeds with a batch of 3"), addressed(seeds_from(0, 2)):
        numbered(0.5)(torch.ones(3, 3))
    for seeds in (torch.zeros(2), torch.zeros(2, 1, dtype=torch.int64)):
        with pytest.raises(ValueError, match="int64"), addressed(seeds):
            pass


def test_a_compiled_network_has_the_same_masks() -> None:
    """By the default compiler, which cannot generate the hash itself on a GPU."""
    layer = AddressedDropout(0.3).train()
    layer.number = 3
    network = nn.Sequential(nn.Conv2d(3, 8, 3), layer)
    x, seeds = torch.randn(4, 3, 12, 12), torch.arange(4)
    with addressed(seeds):
        plain = network(x)
        compiled = torch.compile(network)(x)
    torch.testing.assert_close(compiled, plain, rtol=1e-5, atol=1e-6)
    assert (compiled == 0).float().mean() > 0.2 and ((compiled == 0) == (plain == 0)).all()
