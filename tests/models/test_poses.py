"""Grids and vectors of poses against float64 geometry that is solved another way: roots, bisection, 4x4 matrices."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from soda_dist.models import pose_encoding
from soda_dist.models.pose_encoding import PoseGrid, PoseVector, pixel_grid, ray_points, rays, sinusoidal

FORMS = ("concat", "normalized", "plane", "sphere")
WHOLE = torch.tensor([[-1.0, -1.0, 1.0, 1.0]])
RADIUS = 0.8


def matrix(eye, at, roll=0.0):
    """camera_to_world, float64 [4, 4], of a camera at `eye` that looks at `at`, turned around its axis by `roll`."""
    forward = np.subtract(at, eye) / np.linalg.norm(np.subtract(at, eye))
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right)
    placed = np.eye(4)
    turn = Rotation.from_euler("z", roll).as_matrix()
    placed[:3, :3] = np.stack([right, np.cross(forward, right), forward], 1) @ turn
    placed[:3, 3] = eye
    return placed


def intrinsics(rng, focal=1.0):
    """Unequal focal lengths, skew, a principal point off the centre."""
    fx, fy = focal * rng.uniform(0.7, 1.4, 2)
    return np.array([[fx, rng.normal(0, 0.1), rng.uniform(0.3, 0.7)], [0, fy, rng.uniform(0.3, 0.7)], [0, 0, 1]])


def packed(placed, k):
    return np.concatenate([placed[:3].ravel(), k.ravel()])


def to_tensor(cameras):
    return torch.tensor(np.array(cameras), dtype=torch.float32)


def random_cameras(kind):
    """Cameras outside the sphere that look at it or away from it, or cameras inside it; [5, 21] float64."""
    rng = np.random.default_rng(3)
    cameras = []
    for _ in range(5):
        way = rng.normal(size=3)
        eye = way / np.linalg.norm(way) * (0.6 * RADIUS if kind == "inside" else rng.uniform(1.2, 2.2))
        at = {"towards": rng.normal(0, 0.2, 3), "away": 2 * eye, "inside": rng.normal(size=3)}[kind]
        cameras.append(packed(matrix(eye, at, rng.normal()), intrinsics(rng, 0.5)))
    return np.array(cameras)


def slow_ray(camera, i, j, h, w):
    """Origin, direction and forward axis, by a linear system and scipy's rotations."""
    placed, k = camera[:12].reshape(3, 4), camera[12:].reshape(3, 3)
    turn = Rotation.from_matrix(placed[:, :3])
    direction = turn.apply(np.linalg.solve(k, [(j + 0.5) / w, (i + 0.5) / h, 1]))
    return placed[:, 3], direction / np.linalg.norm(direction), turn.apply([0, 0, 1])


def crossing(value, low, high):
    """Where an increasing function crosses zero, by bisection."""
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if value(middle) < 0 else (low, middle)
    return low


def slow_point(form, o, d, forward):
    match form:
        case "concat":
            return np.concatenate([o, d])
        case "normalized":
            return o + d / np.linalg.norm(d)
        case "plane":
            behind = forward @ o >= 0
            return o if behind else o + d * crossing(lambda s: forward @ (o + s * d), 0, 1e4)
        case "sphere":
            roots = np.roots([d @ d, 2 * o @ d, o @ o - RADIUS**2])
            there = [s.real for s in roots if abs(s.imag) < 1e-12 and s.real >= 0]
            if there:
                return o + min(there) * d
            nearest = o + d * crossing(lambda s: d @ (o + s * d), 0, 1e4)
            return RADIUS * nearest / np.linalg.norm(nearest)


def slow_coordinates(coordinates, point, extent):
    if coordinates == "cartesian":
        return np.clip(point / extent, -1, 1)
    r = math.dist(point, (0, 0, 0))
    return np.array(
        [min(r / extent, 1), math.asin(point[2] / r) / math.pi * 2, np.angle(complex(*point[:2])) / math.pi]
    )


def slow_encoding(values, dim, scale):
    share = dim // len(values) // 2 * 2
    out = []
    for p in values:
        angles = [p / scale / 10000 ** (2 * i / share) for i in range(share // 2)]
        out += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    return np.array(out + [0.0] * (dim - len(out)))


def grid(**changes) -> PoseGrid:
    torch.manual_seed(0)
    how = {"kind": "cameras", "form": "sphere", "coordinates": "polar", "radius": RADIUS, "extent": 4.0}
    return PoseGrid(**{**how, "dim": 36, "scale": 1e-2, "channels": 5, **changes})


def test_rays_go_through_the_centres_of_the_cells():
    rng = np.random.default_rng(0)
    ks = [intrinsics(rng) for _ in range(5)]
    ks[1] = np.diag([-1, 1, 1]) @ ks[1]  # mirrored
    ks[2][2] = [0.1, -0.05, 0.9]
    ks[3] *= 7
    places = [matrix(rng.normal(size=3), rng.normal(size=3), rng.normal()) for _ in ks]
    cameras = [packed(*each) for each in zip(places, ks, strict=True)]
    origins, directions = rays(to_tensor(cameras), 3, 4)
    assert origins.shape == (5, 1, 1, 3) and directions.dtype == torch.float32
    forward = pose_encoding.viewing_directions(to_tensor(cameras))
    for b, i, j in np.ndindex(5, 3, 4):
        expected = slow_ray(cameras[b], i, j, 3, 4)
        got = origins[b, 0, 0], directions[b, i, j], forward[b]
        np.testing.assert_allclose(np.stack(got), np.stack(expected), rtol=0, atol=1e-6)


def test_the_ray_of_a_cell_that_a_point_is_projected_to_goes_through_it():
    rng = np.random.default_rng(1)
    h, w, i, j = 5, 8, 1, 6
    for _ in range(20):
        eye, point = rng.normal(0, 3, 3), rng.normal(size=3)
        placed, k = matrix(eye, point + rng.normal(0, 0.3, 3), rng.normal()), intrinsics(rng)
        seen = k @ (np.linalg.inv(placed) @ [*point, 1])[:3]
        k[:2, 2] += np.array([(j + 0.5) / w, (i + 0.5) / h]) - seen[:2] / seen[2]
        origins, directions = rays(to_tensor([packed(placed, k)]), h, w)
        reached = origins[0, 0, 0] + math.dist(eye, point) * directions[0, i, j]
        np.testing.assert_allclose(reached, point, rtol=0, atol=1e-5)


@pytest.mark.parametrize("coordinates", ["cartesian", "polar"])
@pytest.mark.parametrize("form", FORMS)
def test_cells_equal_solved_ones(form, coordinates):
    extent, h, w = 4.0, 4, 5
    for kind in ("towards", "away", "inside"):
        cameras = random_cameras(kind)
        got = grid(form=form, coordinates=coordinates, extent=extent).cells(to_tensor(cameras), h, w)
        for b, i, j in np.ndindex(len(cameras), h, w):
            point = slow_point(form, *slow_ray(cameras[b], i, j, h, w))
            expected = slow_coordinates(coordinates, point[:3], extent)
            if form == "concat":
                expected = np.concatenate([expected, slow_coordinates(coordinates, point[3:], 1)])
            apart = got[b, i, j].double().numpy() - expected
            if coordinates == "polar":  # an azimuth of -1 is one of 1
                apart[2::3] = (apart[2::3] + 1) % 2 - 1
            np.testing.assert_allclose(apart, 0, atol=5e-6, err_msg=f"{kind} {b} {i} {j}")


def test_the_cameras_above_have_rays_of_every_kind():
    hits, ahead = {}, {}
    for kind in ("towards", "away", "inside"):
        found = [slow_ray(camera, i, j, 4, 5) for camera in random_cameras(kind) for i in range(4) for j in range(5)]
        hits[kind] = np.mean([np.linalg.norm(o - (o @ d) * d) < RADIUS for o, d, _ in found])
        ahead[kind] = np.mean([f @ o < 0 for o, _, f in found])
    assert 0.2 < hits["towards"] < 0.8 and hits["inside"] == 1
    assert ahead["towards"] == 1 and ahead["away"] == 0 and 0 < ahead["inside"] < 1


def test_what_misses_the_sphere_continues_what_hits_it():
    camera = packed(matrix([0, -2, 0.1], [0, 0, 0.1]), np.array([[0.6, 0, 0.5], [0, 0.6, 0.5], [0, 0, 1]]))
    points = grid(coordinates="cartesian", extent=1.0).cells(to_tensor([camera]), 1, 4000)[0, 0]
    steps = points.diff(dim=0).norm(dim=1)
    # At the edge a sphere falls off like a square root.
    assert float(steps.max()) < 0.04 and float(steps.median()) < 2e-3
    torch.testing.assert_close(points.norm(dim=1), torch.full((4000,), RADIUS), rtol=0, atol=1e-6)


def test_rays_along_the_plane_end_at_a_thousand_distances():
    o, forward = torch.tensor([0.0, -2, 0]), torch.tensor([0.0, 1, 0])
    angles = torch.tensor([0.0, 60, 89.9, 89.95, 90, 91, 180]).deg2rad()
    d = torch.stack([angles.sin(), angles.cos(), torch.zeros(7)], 1)
    points = ray_points(o.expand(1, 1, 1, 3), d[None, None], form="plane", forward=forward, radius=1)[0, 0]
    lengths = (points - o).norm(dim=1)
    torch.testing.assert_close(lengths[:3], torch.tensor([2, 4, 1145.92]), rtol=1e-4, atol=0)
    torch.testing.assert_close(lengths[3:], torch.full((4,), 2000.0), rtol=1e-5, atol=0)


def test_numbers_are_finite_and_bounded_for_degenerate_cameras():
    down = np.array([[1.0, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, 3]])
    k = np.array([[1.0, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    at_origin, on_sphere, above = down.copy(), down.copy(), down
    at_origin[2, 3], on_sphere[2, 3] = 0, RADIUS
    wide = k * [[1e-7, 1, 1], [1, 1e-7, 1], [1, 1, 1]]
    cameras = [packed(placed, k) for placed in (above, at_origin, on_sphere)]
    cameras += [packed(above, wide), packed(-above, k), np.zeros(21)]
    for form in FORMS:
        for coordinates in ("cartesian", "polar"):
            found = grid(form=form, coordinates=coordinates, extent=0.5).cells(to_tensor(cameras), 5, 5)
            assert bool((found.abs() <= 1).all()), (form, coordinates)
    assert bool((found[0, :, :, 1] > 0).all()) and float(found[0, 2, 2, 1]) == 1  # the sphere's top, at the middle


def test_tangents_of_the_sphere_touch_it():
    """Cameras on the sphere, but for rounding, that look along it."""
    rng = np.random.default_rng(4)
    o = rng.normal(size=(400_000, 3))
    o *= RADIUS / np.linalg.norm(o, axis=1, keepdims=True)
    d = np.cross(o, rng.normal(size=(400_000, 3))) + 1e-5 * rng.normal(size=(400_000, 1)) * o
    d /= np.linalg.norm(d, axis=1, keepdims=True)
    o, d = (torch.tensor(each, dtype=torch.float32)[:, None, None] for each in (o, d))
    points = ray_points(o, d, form="sphere", forward=d, radius=RADIUS)
    # An error in the distance is one of its root's size along the ray.
    torch.testing.assert_close(points, o, rtol=0, atol=3e-3)


@pytest.mark.parametrize("turn", [0.7, -2.5, 2 * math.pi])
@pytest.mark.parametrize("form", FORMS)
def test_a_turn_about_the_vertical_moves_azimuths_alone(form, turn):
    turned = []
    for camera in random_cameras("towards"):
        placed = Rotation.from_euler("z", turn).as_matrix() @ camera[:12].reshape(3, 4)
        turned.append(np.concatenate([placed.ravel(), camera[12:]]))
    before, after = (grid(form=form).cells(to_tensor(each), 4, 5) for each in (random_cameras("towards"), turned))
    expected = torch.tensor([0, 0, turn / math.pi]).repeat(before.shape[-1] // 3)
    apart = after - before - expected
    apart[..., 2::3] = (apart[..., 2::3] + 1) % 2 - 1
    assert float(apart.abs().max()) < 5e-6


def test_lengths_are_divided_by_the_extent_and_clipped_but_directions_are_not():
    camera = to_tensor([packed(matrix([0, -3, 0], [0, 0, 0]), np.array([[9, 0, 0.5], [0, 9, 0.5], [0, 0, 1.0]]))])
    for extent, place in ((4.0, -0.75), (2.0, -1.0)):
        cells = grid(form="concat", coordinates="cartesian", extent=extent).cells(camera, 1, 1).flatten()
        torch.testing.assert_close(cells, torch.tensor([0, place, 0, 0, 1, 0]))
        cells = grid(form="concat", extent=extent).cells(camera, 1, 1).flatten()
        torch.testing.assert_close(cells, torch.tensor([-place, 0, -0.5, 1, 0, 0.5]))


def test_pixels_are_centres_of_cells_in_the_original_image():
    whole = pixel_grid(WHOLE, 6, 8)
    for i, j in np.ndindex(6, 8):
        expected = np.linspace(-1, 1, 17)[2 * j + 1], np.linspace(-1, 1, 13)[2 * i + 1]
        np.testing.assert_allclose(whole[0, i, j], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(whole, -whole.flip(1, 2), rtol=0, atol=1e-6)
    frame = torch.tensor([[-1 + 2 * 1 / 6, -1 + 2 * 3 / 8, -1 + 2 * 5 / 6, -1 + 2 * 7 / 8]])
    crop = pixel_grid(frame, 4, 4)
    torch.testing.assert_close(crop, whole[:, 1:5, 3:7], rtol=0, atol=1e-6)
    mirrored = pixel_grid(frame[:, [0, 3, 2, 1]], 4, 4)
    torch.testing.assert_close(mirrored, crop.flip(2), rtol=0, atol=1e-6)
    torch.testing.assert_close(grid(kind="pixels").cells(frame, 4, 4), crop, rtol=0, atol=0)


@pytest.mark.parametrize(("count", "dim"), [(2, 22), (3, 20), (6, 12)])
@pytest.mark.parametrize(("scale", "atol"), [(1e-4, 4e-3), (1.0, 1e-6)])
def test_encoding_equals_a_loop(count, dim, scale, atol):
    coordinates = torch.rand(2, 3, count, generator=torch.Generator().manual_seed(0)) * 2 - 1
    got = sinusoidal(coordinates, dim=dim, scale=scale)
    assert got.shape == (2, 3, dim) and got.dtype == torch.float32
    for place in np.ndindex(2, 3):
        np.testing.assert_allclose(got[place], slow_encoding(coordinates[place].tolist(), dim, scale), atol=atol)


def test_a_small_scale_tells_neighbouring_cells_apart():
    places = pixel_grid(WHOLE, 128, 128)[0, 50]
    for scale, least, most in ((1e-4, 0.5, 0.8), (1.0, 0.9999, 1.0001)):
        encoding = sinusoidal(places, dim=512, scale=scale)
        alike = torch.cosine_similarity(encoding[1:], encoding[:-1])
        assert least < float(alike.min()) and float(alike.max()) < most


def test_grid_is_a_linear_map_of_the_encoding_and_has_no_other_parameters():
    for kind, poses in (("cameras", to_tensor(random_cameras("towards"))), ("pixels", WHOLE)):
        module = grid(kind=kind)
        assert sum(p.numel() for p in module.parameters()) == 36 * 5
        got = module(poses, 2, 3, None)
        assert got.dtype == torch.float32 and got.is_contiguous() and got.shape == (len(poses), 5, 2, 3)
        cells = module.cells(poses, 2, 3)
        for b, i, j in np.ndindex(len(poses), 2, 3):
            expected = module.linear.weight.detach().double().numpy() @ slow_encoding(cells[b, i, j].tolist(), 36, 1e-2)
            np.testing.assert_allclose(got[b, :, i, j].detach(), expected, atol=1e-4)
        with torch.no_grad():
            assert torch.equal(module(poses, 2, 3, None), got)


def saved_sizes(compute) -> tuple[Tensor, list[int]]:
    """The result and the sizes of the tensors that are kept for its backward pass."""
    sizes: list[int] = []

    def pack(kept: Tensor) -> Tensor:
        sizes.append(kept.numel())
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept):
        return compute(), sizes


def test_encoding_is_not_kept_for_the_backward_pass():
    module, poses = grid(), to_tensor(random_cameras("towards"))

    def plain() -> Tensor:
        return module.linear(sinusoidal(module.cells(poses, 6, 7), dim=36, scale=1e-2)).permute(0, 3, 1, 2)

    gradients = []
    encoding = 5 * 6 * 7 * 36
    for compute, kept in ((plain, True), (lambda: module(poses, 6, 7, None), False)):
        result, sizes = saved_sizes(compute)
        assert (max(sizes) >= encoding) == kept
        module.zero_grad()
        result.sin().sum().backward()
        gradients.append(module.linear.weight.grad.clone())
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-6)


def test_masked_poses_are_zero_and_carry_no_gradient():
    module, poses = grid(), to_tensor(random_cameras("towards"))
    poses[1] = 0  # an empty slot
    keep = torch.tensor([True, False, True, False, True])
    masked, free = module(poses, 4, 4, keep), module(poses, 4, 4, None)
    assert torch.equal(masked[keep], free[keep]) and not bool(masked[~keep].any()) and bool(free[3].any())
    masked.sum().backward()
    found = module.linear.weight.grad.clone()
    module.zero_grad()
    module(poses[keep], 4, 4, None).sum().backward()
    torch.testing.assert_close(found, module.linear.weight.grad)
    for form in ("absolute", "relative"):
        vector = PoseVector(form=form, extent=4, dim=48, scale=1e-4)
        masked, free = vector(poses, poses.flip(0), keep), vector(poses, poses.flip(0), None)
        assert torch.equal(masked[keep], free[keep]) and not bool(masked[~keep].any()) and bool(free[3].any())


def test_autocast_leaves_the_encoding_alone():
    module, poses, seen = grid(scale=1e-4), to_tensor(random_cameras("towards")), []
    vector = PoseVector(form="relative", extent=4, dim=48, scale=1e-4)
    module.linear.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    module(poses, 4, 4, None)
    wide = vector(poses, poses.flip(0), None)
    with torch.autocast("cpu", torch.bfloat16):
        result = module(poses, 4, 4, None)
        narrow = vector(poses, poses.flip(0), None)
    assert result.dtype == torch.bfloat16 and seen[1].dtype == narrow.dtype == torch.float32
    assert torch.equal(*seen) and torch.equal(wide, narrow)


def test_vectors_equal_matrices():
    rng = np.random.default_rng(5)
    for _ in range(5):
        source, target = (matrix(rng.normal(0, 2, 3), rng.normal(0, 0.3, 3)) for _ in range(2))
        world = [part for placed in (source, target) for part in ((placed[:3, 3], 8), (placed[:3, 2], 1))]
        between = np.linalg.inv(source) @ target
        axes = np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # forward, left, up
        inside = [(axes @ between[:3, 3], 8), (axes @ between[:3, 2], 1)]
        for form, parts in (("absolute", world), ("relative", inside)):
            values = np.concatenate([slow_coordinates("polar", part, extent) for part, extent in parts])
            vector = PoseVector(form=form, extent=8, dim=50, scale=0.1)
            assert not list(vector.parameters())
            got = vector(*(to_tensor([packed(placed, np.eye(3))]) for placed in (source, target)), None)
            np.testing.assert_allclose(got[0], slow_encoding(values, 50, 0.1), rtol=0, atol=1e-4)


def test_relative_vector_by_hand():
    """The source looks along y; the target stands four ahead and four to the left, and looks to the right."""
    source, target = (to_tensor([packed(matrix(eye, [0, 0, 0]), np.eye(3))]) for eye in ([0, -4, 0], [-4, 0, 0]))
    vector = PoseVector(form="relative", extent=8, dim=48, scale=0.1)
    expected = slow_encoding([math.sqrt(0.5), 0, 0.25, 1, 0, -0.5], 48, 0.1)
    np.testing.assert_allclose(vector(source, target, None)[0], expected, rtol=0, atol=1e-5)
    same = slow_encoding([0, 0, 0, 1, 0, 0], 48, 0.1)
    np.testing.assert_allclose(vector(target, target, None)[0], same, rtol=0, atol=1e-5)


def test_a_common_motion_leaves_the_relative_vector_but_not_the_absolute_one():
    rng = np.random.default_rng(6)
    source, target, motion = matrix([1, -3, 1], [0, 0, 0]), matrix([-2, -1, 0.5], [0, 0, 0]), np.eye(4)
    motion[:3, :3], motion[:3, 3] = Rotation.random(rng=rng).as_matrix(), rng.normal(size=3)
    before, after = (
        [to_tensor([packed(m @ placed, np.eye(3))]) for placed in (source, target)] for m in (np.eye(4), motion)
    )
    for form, same in (("relative", True), ("absolute", False)):
        vector = PoseVector(form=form, extent=8, dim=48, scale=0.1)
        apart = float((vector(*before, None) - vector(*after, None)).abs().max())
        assert (apart < 1e-4) if same else (apart > 0.5)


def test_errors_name_what_is_allowed():
    for name, allowed in (("kind", "pixels, cameras"), ("form", "concat, "), ("coordinates", "cartesian, polar")):
        with pytest.raises(ValueError, match=f"{name}: got x; allowed: {allowed}"):
            grid(**{name: "x"})
    with pytest.raises(ValueError, match="form: got x; allowed: absolute, relative"):
        PoseVector(form="x", extent=1, dim=48, scale=1)
    with pytest.raises(ValueError, match="dim: got 11 for 6 coordinates; allowed: >= 12"):
        grid(form="concat", dim=11)
    with pytest.raises(ValueError, match="dim: got 23 for 12 coordinates; allowed: >= 24"):
        PoseVector(form="absolute", extent=1, dim=23, scale=1)
    with pytest.raises(ValueError, match=r"frames: got \[1, 21\]; allowed: \[B, 4\]"):
        grid(kind="pixels")(torch.zeros(1, 21), 2, 2, None)
    with pytest.raises(ValueError, match=r"cameras: got \[1, 4\]; allowed: \[B, 21\]"):
        grid()(WHOLE, 2, 2, None)
