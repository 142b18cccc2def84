"""Latent tools against scikit-learn, SciPy and closed forms."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial import geometric_slerp
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from soda_dist.metrics.probe import fit_probe
from soda_dist.models.latents import (
    attribute_direction,
    interpolate,
    mix_sections,
    principal_directions,
    resample_sections,
    section_columns,
    traverse,
)
from soda_dist.models.unet import section_sizes

SECTION_OF = torch.arange(3).repeat_interleave(torch.tensor(section_sizes(7, 3)))


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def correlated(n, dim, seed=0):
    """Latents whose variances fall and whose mean is not zero, in a random orientation."""
    scales = torch.linspace(3, 0.2, dim)
    return (randn(n, dim, seed=seed) * scales) @ randn(dim, dim, seed=seed + 1) + 5 * randn(dim, seed=seed + 2)


# Interpolation


def test_linear_interpolation_equals_its_formula():
    a, b, weights = randn(2, 3, 5), randn(2, 3, 5, seed=1), torch.tensor([0.0, 0.3, 0.9, 1.0])
    out = interpolate(a, b, weights, method="linear")
    assert out.shape == (4, 2, 3, 5)
    for i, w in enumerate(weights.tolist()):
        torch.testing.assert_close(out[i], (1 - w) * a + w * b)
    assert torch.equal(out[0], a) and torch.equal(out[3], b)


def test_spherical_interpolation_equals_scipy_on_the_directions_and_a_line_on_the_lengths():
    a, b = randn(6, 5, dtype=torch.float64), 3 * randn(6, 5, seed=1, dtype=torch.float64)
    weights = torch.linspace(0, 1, 7, dtype=torch.float64)
    out = interpolate(a, b, weights, method="spherical")
    for i in range(6):
        u, v = (x / x.norm() for x in (a[i], b[i]))
        expected = geometric_slerp(u.numpy(), v.numpy(), weights.numpy())
        lengths = (1 - weights) * a[i].norm() + weights * b[i].norm()
        torch.testing.assert_close(out[:, i], torch.from_numpy(expected) * lengths[:, None], rtol=1e-9, atol=1e-9)


def test_spherical_interpolation_between_axes_in_closed_form():
    out = interpolate(
        torch.tensor([2.0, 0.0, 0.0]), torch.tensor([0.0, 6.0, 0.0]), torch.tensor([1 / 3]), method="spherical"
    )
    torch.testing.assert_close(
        out, torch.tensor([[10 / 3 * math.cos(math.pi / 6), 10 / 3 * math.sin(math.pi / 6), 0.0]])
    )


@pytest.mark.parametrize("method", ["linear", "spherical"])
@pytest.mark.parametrize("nearness", [1.0, 1e-3, 1e-6])
def test_the_ends_are_the_two_latents_however_near_or_opposite(method, nearness):
    a = randn(4, 5)
    b = torch.stack([a[0] * 2, -a[1] / 3, -a[2], a[3]]) + nearness * randn(4, 5, seed=1)
    out = interpolate(a, b, torch.tensor([0.0, 1.0]), method=method)
    torch.testing.assert_close(out, torch.stack([a, b]), rtol=1e-6, atol=1e-6)


def test_spherical_interpolation_of_parallel_latents_stays_on_their_line():
    a, weights = randn(3, 5), torch.tensor([0.0, 0.25, 1.0])
    out = interpolate(a, 3 * a, weights, method="spherical")
    torch.testing.assert_close(out, (1 + 2 * weights)[:, None, None] * a)


def test_spherical_interpolation_of_opposite_latents_turns_towards_the_smallest_axis():
    a = torch.tensor([3.0, 0.0, -4.0])
    out = interpolate(a, -2 * a, torch.tensor([0.0, 0.5, 1.0]), method="spherical")
    torch.testing.assert_close(out, torch.stack([a, torch.tensor([0.0, 7.5, 0.0]), -2 * a]), rtol=0, atol=1e-6)


def test_spherical_interpolation_from_zero_is_straight_and_between_zeros_is_zero():
    a, zero, weights = randn(5), torch.zeros(5), torch.tensor([0.0, 0.25, 1.0])
    torch.testing.assert_close(interpolate(zero, a, weights, method="spherical"), weights[:, None] * a)
    torch.testing.assert_close(interpolate(a, zero, weights, method="spherical"), (1 - weights)[:, None] * a)
    assert torch.equal(interpolate(zero, zero, weights, method="spherical"), torch.zeros(3, 5))


# Principal directions


@pytest.mark.parametrize(("n", "dim"), [(200, 6), (7, 7), (6, 20), (2, 3)])
def test_principal_directions_equal_those_of_scikit_learn(n, dim):
    latents = correlated(n, dim)
    count = min(n - 1, dim, 5)
    found = principal_directions(latents, columns=None, count=count)
    theirs = PCA(count, svd_solver="full").fit(latents.double().numpy())
    signs = np.sign(np.take_along_axis(theirs.components_, np.abs(theirs.components_).argmax(1)[:, None], 1))
    expected = (theirs.mean_, theirs.components_ * signs, np.sqrt(theirs.explained_variance_))
    for ours, their in zip(found, (*expected, theirs.explained_variance_ratio_), strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), torch.from_numpy(their), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [100, 5])
def test_directions_of_chosen_columns_are_zero_outside_and_equal_those_of_the_columns_alone(n):
    latents, columns = correlated(n, 9), torch.tensor([7, 1, 2, 4, 8])
    found = principal_directions(latents, columns=columns, count=3)
    alone = principal_directions(latents[:, columns], columns=None, count=3)
    torch.testing.assert_close(found.directions[:, columns], alone.directions)
    assert not bool(found.directions[:, [0, 3, 5, 6]].any())
    torch.testing.assert_close(found.mean, latents.double().mean(0).float())
    torch.testing.assert_close(found[2:], alone[2:])


@pytest.mark.parametrize("n", [300, 12])
def test_sigmas_are_the_deviations_of_the_projections_and_no_direction_has_a_larger_one(n):
    latents = correlated(n, 20)
    found = principal_directions(latents, columns=None, count=8)
    projected = (latents - found.mean).double() @ found.directions.double().T
    torch.testing.assert_close(projected.std(0).float(), found.sigmas, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.explained, found.sigmas**2 / latents.double().var(0).sum().float())
    gram = found.directions @ found.directions.T
    torch.testing.assert_close(gram, torch.eye(8), rtol=0, atol=1e-5)
    others = torch.nn.functional.normalize(randn(500, 20, seed=9), dim=1)
    assert float(((latents - found.mean) @ others.T).std(0).max()) <= float(found.sigmas[0]) * (1 + 1e-5)


def test_a_known_direction_and_its_sigma_come_back():
    direction = torch.tensor([0.0, -0.8, 0.6, 0.0])
    latents = 1.5 + torch.tensor([-2.0, 0.0, 2.0])[:, None] * direction
    found = principal_directions(latents, columns=None, count=1)
    torch.testing.assert_close(found.directions, -direction[None], rtol=0, atol=1e-6)
    torch.testing.assert_close(found.sigmas, torch.tensor([2.0]))
    torch.testing.assert_close(found.explained, torch.tensor([1.0]))


@pytest.mark.parametrize("n", [30, 4])
def test_the_largest_entry_is_positive_so_that_negated_latents_have_the_same_directions(n):
    latents = correlated(n, 6)
    one, other = (principal_directions(sign * latents, columns=None, count=3).directions for sign in (1, -1))
    torch.testing.assert_close(one, other)
    assert bool((one.gather(1, one.abs().argmax(1, keepdim=True)) > 0).all())


def test_columns_that_do_not_vary_explain_nothing_and_stay_finite():
    found = principal_directions(torch.full((5, 3), 0.7), columns=None, count=2)
    torch.testing.assert_close(found.sigmas, torch.zeros(2), rtol=0, atol=1e-6)
    assert bool(found.directions.isfinite().all())
    assert torch.equal(principal_directions(torch.ones(9, 3), columns=None, count=2).explained, torch.zeros(2))


def test_traversal_moves_by_k_deviations_along_the_direction_alone():
    z, direction = randn(4, 3), torch.tensor([0.6, 0.0, -0.8])
    out = traverse(z, direction, 0.5, [-3, 0, 2.0])
    assert out.shape == (3, 4, 3)
    assert torch.equal(out[1], z)
    for i, k in ((0, -3.0), (2, 2.0)):
        torch.testing.assert_close((out[i] - z) @ direction, torch.full((4,), 0.5 * k))
        torch.testing.assert_close(out[i], z + torch.tensor([0.3, 0.0, -0.4]) * k)


# Attribute directions


def test_attribute_direction_is_the_row_in_units_of_z():
    weights, std = torch.tensor([[9.0, 9.0, 9.0], [3.0, -2.0, 5.0]]), torch.tensor([1.0, 2.0, 0.0])
    torch.testing.assert_close(attribute_direction(weights, 1, std=std), torch.tensor([0.6, -0.8, 0.0]))
    torch.testing.assert_close(attribute_direction(1e-3 * weights, 1, std=1e-3 * std), torch.tensor([0.6, -0.8, 0.0]))


def test_no_step_of_the_same_standardised_length_raises_the_logit_of_a_trained_probe_more():
    # The metric is the standardised one: a step's length is that of step / std.
    latents = correlated(600, 8) * torch.logspace(0, -2, 8)
    labels = (latents @ randn(8, 3, seed=5)).argmax(1)
    probe = make_pipeline(StandardScaler(), LogisticRegression())
    probe.fit(latents.double().numpy(), labels.numpy())
    std = torch.from_numpy(probe[0].scale_).double()
    weights, z = torch.from_numpy(probe[1].coef_).double(), latents[:1].double()
    for index in range(3):
        direction = attribute_direction(weights, index, std=std).double()
        rivals = [direction, weights[index], weights[index] / std, *randn(2000, 8, seed=6, dtype=torch.float64) * std]
        steps = torch.stack([0.1 * rival / (rival / std).norm() for rival in rivals])
        logits = torch.from_numpy(probe.decision_function((z + steps).numpy()))[:, index]
        rise = logits - float(probe.decision_function(z.numpy())[0, index])
        torch.testing.assert_close(rise[0], 0.1 * weights[index].norm(), rtol=1e-4, atol=1e-6)
        assert float(rise[1:].max()) < float(rise[0])


def test_the_direction_of_our_probe_is_that_between_the_classes_and_avoids_what_never_varies():
    # Independent elements of very different deviations, the last one constant; the classes' means differ by `between`.
    std = torch.logspace(0, -2, 16)
    std[-1] = 0
    labels = torch.arange(1000) % 2
    between = std * torch.tensor([1.0, -0.5, 0.3, 0.2] + [0.0] * 12)
    latents = randn(1000, 16) * std + labels[:, None] * between
    probe = fit_probe(
        latents, labels, classes=2, seed=0, learning_rates=[3e-2], epochs=10, batch=250, dropout=0.1,
        label_smoothing=0.0, weight_std=0.02, bias=0.0,
    )  # fmt: skip
    direction = attribute_direction(probe.weight, 1, std=probe.variance.sqrt())
    assert float(direction @ between / between.norm()) > 0.98
    assert float(direction[-1]) == 0
    moved = probe.predict(traverse(latents, direction, 1.0, [1.0])[0]) - probe.predict(latents)
    assert float(moved[:, 1].min()) > 0.1


# Sections


def test_columns_of_sections_are_those_of_the_denoiser():
    assert SECTION_OF.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert section_columns(SECTION_OF, [2, 0]).tolist() == [0, 1, 2, 5, 6]
    assert section_columns(torch.tensor([1, 0, 1]), [1]).tolist() == [0, 2]
    assert section_columns(SECTION_OF, []).dtype == torch.int64 and len(section_columns(SECTION_OF, [])) == 0


@pytest.mark.parametrize("section_of", [SECTION_OF, torch.tensor([2, 0, 1, 1, 0, 2, 0])], ids=["blocks", "scattered"])
def test_mixing_takes_each_section_from_the_latent_of_its_choice(section_of):
    latents, choice = randn(4, 5, 7), torch.tensor([3, 0, 3])
    mixed = mix_sections(latents, choice, section_of)
    for b in range(5):
        for d in range(7):
            assert float(mixed[b, d]) == float(latents[choice[section_of[d]], b, d])


def test_resampling_replaces_chosen_sections_by_those_of_one_row_and_leaves_the_others_bits():
    z, pool = randn(200, 7), randn(5, 7, seed=1)
    z[0, 3], z[1, 4] = math.nan, -0.0
    before = z.clone()
    out = resample_sections(z, pool, [0, 2], SECTION_OF, torch.Generator().manual_seed(0))
    kept, changed = section_columns(SECTION_OF, [1]), section_columns(SECTION_OF, [0, 2])
    assert torch.equal(out[:, kept].view(torch.int32), before[:, kept].view(torch.int32))
    assert torch.equal(z.view(torch.int32), before.view(torch.int32)), "the input is not written to"
    rows = (out[:, None, changed] == pool[None, :, changed]).all(2)
    assert bool((rows.sum(1) == 1).all())
    assert int(rows.sum(0).min()) > 20, "every row of the pool is drawn"
    assert torch.equal(resample_sections(z[2:], pool, [], SECTION_OF, torch.Generator()), z[2:])


def test_resampling_is_decided_by_the_generator():
    z, pool = randn(50, 7), randn(9, 7, seed=1)
    one, same, other = (
        resample_sections(z, pool, [1], SECTION_OF, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)


Z, ROW = torch.zeros(2, 7), torch.ones(7)
GENERATOR = torch.Generator()
WRONG = {
    "a, b": (interpolate, (Z, ROW, ROW), {"method": "linear"}),
    "a, b: got torch.float32": (interpolate, (Z, Z.double(), ROW), {"method": "linear"}),
    "weights: got [2.0]": (interpolate, (Z, Z, torch.tensor([2.0])), {"method": "linear"}),
    "weights: got [nan]": (interpolate, (Z, Z, torch.tensor([math.nan])), {"method": "spherical"}),
    "method: got cubic; allowed: linear, spherical": (interpolate, (Z, Z, ROW), {"method": "cubic"}),
    "latents: got torch.float32 [7]": (principal_directions, (ROW,), {"columns": None, "count": 1}),
    "latents: got torch.float32 [2, 7]": (principal_directions, (Z / 0,), {"columns": None, "count": 1}),
    "count: got 2; allowed: 1..1": (principal_directions, (Z,), {"columns": None, "count": 2}),
    "count: got 0": (principal_directions, (Z,), {"columns": None, "count": 0}),
    "columns: got [1, 1]": (principal_directions, (Z,), {"columns": torch.tensor([1, 1]), "count": 1}),
    "columns: got [7]": (principal_directions, (Z,), {"columns": torch.tensor([7]), "count": 1}),
    "direction: got [2]": (traverse, (Z, ROW[:2], 1.0, [1.0]), {}),
    "weights: got [2, 7] with std [2]": (attribute_direction, (Z, 0), {"std": ROW[:2]}),
    "index: got 2; allowed: 0..1": (attribute_direction, (Z, 2), {"std": ROW}),
    "index: got -1; allowed: 0..1": (attribute_direction, (Z, -1), {"std": ROW}),
    "weights: got row 0 of length 0.0": (attribute_direction, (Z, 0), {"std": ROW}),
    "std: got -1.0": (attribute_direction, (Z, 0), {"std": -ROW}),
    "sections: got 3; allowed: 0..2": (section_columns, (SECTION_OF, [3]), {}),
    "sections: got -1": (section_columns, (SECTION_OF, [-1]), {}),
    "section_of: got torch.float32 [7]": (section_columns, (ROW, [0]), {}),
    "latents: got [2, 7]; allowed: [K, B, 7]": (mix_sections, (Z, torch.tensor([0, 1, 0]), SECTION_OF), {}),
    "choice: got [0, 1]": (mix_sections, (Z[:, None], torch.tensor([0, 1]), SECTION_OF), {}),
    "choice: got [0, 1, 2]": (mix_sections, (Z[:, None], torch.tensor([0, 1, 2]), SECTION_OF), {}),
    "z: got [7]": (resample_sections, (ROW, Z, [0], SECTION_OF, GENERATOR), {}),
    "pool: got torch.float32 [0, 7]": (resample_sections, (Z, Z[:0], [0], SECTION_OF, GENERATOR), {}),
}


@pytest.mark.parametrize("says", WRONG)
def test_wrong_arguments_are_named(says):
    function, arguments, options = WRONG[says]
    with pytest.raises(ValueError, match="; allowed: ") as caught:
        function(*arguments, **options)
    assert str(caught.value).startswith(says)
