import pytest
import torch
from scipy import stats

from soda_dist.training.randomness import draw, mix64

SHAPES = {
    "timesteps": 1000,
    "source_size": 8,
    "target_size": 8,
    "sections": 6,
    "sources": 2,
    "rates": (0.15, 0.12, 0.3),
}


def test_a_sample_draws_the_same_in_any_batch():
    whole = draw(3, torch.arange(100, 116), **SHAPES)
    part = draw(3, torch.tensor([111, 104]), **SHAPES)
    for name in ("t", "eps", "source_noise", "keep", "pose_keep", "seeds"):
        assert torch.equal(getattr(whole, name)[[11, 4]], getattr(part, name)), name


def test_seed_and_position_both_matter():
    one, other = draw(0, torch.arange(64), **SHAPES), draw(1, torch.arange(64), **SHAPES)
    assert not torch.equal(one.t, other.t)
    assert len(set(one.seeds.tolist()) | set(other.seeds.tolist())) == 128
    assert not torch.equal(one.eps[0], one.eps[1])


def test_the_rates_are_those_asked_for():
    n, sections = 6000, 6
    draws = draw(7, torch.arange(n), **SHAPES)
    dropped = (~draws.keep).all(dim=1).float().mean().item()
    all_six = 0.12 + 0.88 * 0.15**6
    assert abs(dropped - all_six) < 4 * (all_six * (1 - all_six) / n) ** 0.5
    zeroed = (~draws.keep).float().mean().item()
    expected = 0.12 + 0.88 * 0.15
    # Sections of a sample share the guidance mask, so the samples, not the sections, are the independent draws.
    assert abs(zeroed - expected) < 4 * (0.12 * 0.88 / n + 0.13 / (n * sections)) ** 0.5


def test_timesteps_are_uniform_and_noise_is_normal():
    draws = draw(1, torch.arange(4000), **SHAPES)
    counts = torch.histc(draws.t.float(), bins=10, min=0, max=1000)
    assert ((counts - 400).abs() < 4 * (400 * 0.9) ** 0.5).all()
    assert draws.t.min() >= 0 and draws.t.max() < 1000
    eps = draws.eps.double()
    assert abs(eps.mean()) < 4 / eps.numel() ** 0.5
    assert abs(eps.var() - 1) < 4 * (2 / eps.numel()) ** 0.5
    for other in draws.source_noise.unbind(1):
        correlation = (draws.eps * other).double()
        assert abs(correlation.mean()) < 4 / correlation.numel() ** 0.5
    correlation = draws.source_noise.double().prod(1)
    assert abs(correlation.mean()) < 4 / correlation.numel() ** 0.5


def test_poses_are_masked_independently_of_z():
    n = 6000
    draws = draw(7, torch.arange(n), **SHAPES)
    hidden, dropped = ~draws.pose_keep, (~draws.keep).all(dim=1)
    assert abs(hidden.float().mean().item() - 0.3) < 4 * (0.3 * 0.7 / n) ** 0.5
    both = (hidden & dropped).float().mean().item()
    assert abs(both - 0.3 * 0.12) < 4 * (0.036 / n) ** 0.5
    assert not bool((~draw(7, torch.arange(n), **{**SHAPES, "rates": (0, 0, 0)}).pose_keep).any())
    assert not bool(draw(7, torch.arange(n), **{**SHAPES, "rates": (0, 0, 1)}).pose_keep.any())


def test_numbers_do_not_depend_on_whether_sources_get_noise():
    one, other = draw(3, torch.arange(20), **SHAPES), draw(3, torch.arange(20), **{**SHAPES, "sources": 0})
    assert other.source_noise is None
    for name in ("t", "eps", "keep", "pose_keep", "seeds"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_the_hash_is_splitmix64():
    """Its first outputs from state 0, as published; a chained word adds to the state before the next increment."""
    assert mix64(0) == 0xE220A8397B1DCDAF
    assert mix64(0x9E3779B97F4A7C15) == 0x6E789E6AA1B965F4
    assert mix64(7, -mix64(7)) == mix64(0)


def test_the_hash_spreads_single_bit_changes():
    flips = [bin(mix64(5, 1 << bit) ^ mix64(5, 0)).count("1") for bit in range(63)]
    assert 16 <= min(flips) <= max(flips) <= 48  # four standard deviations around 32
    assert abs(sum(flips) / len(flips) - 32) < 2


def test_words_of_a_sample_are_hashes_of_its_address():
    """Thresholds and timesteps in Python's whole numbers."""
    positions = [0, 12345, 2**35 + 1]
    draws = draw(5, torch.tensor(positions), **SHAPES)
    for row, position in enumerate(positions):
        assert draws.seeds[row].item() % 2**64 == mix64(5, position, 1)
        stream = mix64(5, position, 2)
        words = []
        for k in range(1, 6):
            x = (stream + 0x9E3779B97F4A7C15 + k * 0xC2B2AE3D27D4EB4F) % 2**64
            x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
            x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
            x ^= x >> 31
            words += [x & 0x7FFFFFFF, x >> 32 & 0x7FFFFFFF]
        t, guidance, pose, *sections = (word / 2**31 for word in words[:9])
        assert draws.t[row] == int(t * 1000)
        assert draws.pose_keep[row] == (pose >= 0.3)
        assert draws.keep[row].tolist() == [guidance >= 0.12 and section >= 0.15 for section in sections]


@pytest.mark.parametrize("seed", [0, 3, 2**31 - 1])
def test_draws_of_samples_steps_purposes_and_seeds_are_uncorrelated(seed):
    """Over a run's first positions and far into it, in standard errors."""
    near, far = (draw(seed, torch.arange(start, start + 512), **SHAPES) for start in (0, 512_000_000))
    other = draw(seed + 1, torch.arange(512), **SHAPES)
    noise = [near.eps, far.eps, other.eps, near.source_noise[:, 0], near.source_noise[:, 1]]
    for i, one in enumerate(noise):
        assert stats.kstest(one.flatten()[::2].numpy(), "norm").pvalue > 1e-4
        assert abs(float((one[1:] * one[:-1]).double().mean())) * one[1:].numel() ** 0.5 < 4
        for two in noise[:i]:
            assert abs(float((one * two).double().mean())) * one.numel() ** 0.5 < 4
    times = torch.cat([near.t, far.t]).double()
    assert stats.kstest((times / 1000).numpy(), "uniform").pvalue > 1e-4
    size = torch.cat([near.eps, far.eps]).double().flatten(1).square().mean(1)
    for column in (
        times,
        torch.cat([near.keep, far.keep]).double().mean(1),
        torch.cat([near.pose_keep, far.pose_keep]),
    ):
        assert abs(float(torch.corrcoef(torch.stack([column.double(), size]))[0, 1])) * 1024**0.5 < 4


@pytest.mark.long
def test_a_compiled_draw_has_the_same_integers_and_the_same_noise_to_rounding():
    index = torch.arange(5)
    plain, compiled = draw(3, index, **SHAPES), torch.compile(lambda at: draw(3, at, **SHAPES), fullgraph=True)(index)
    for name in ("t", "keep", "pose_keep", "seeds"):
        assert torch.equal(getattr(plain, name), getattr(compiled, name)), name
    for name in ("eps", "source_noise"):
        torch.testing.assert_close(getattr(compiled, name), getattr(plain, name), rtol=1e-5, atol=2e-6, msg=name)
