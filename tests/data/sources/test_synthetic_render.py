"""The ray caster against projective geometry and closed forms, in float64 and without its code."""

import numpy as np
import pytest
from scipy.spatial import ConvexHull

from soda_dist.data.sources.synthetic import Options, scenes
from soda_dist.data.sources.synthetic_render import (
    AMBIENT,
    CONE,
    CUBE,
    CYLINDER,
    FLOOR,
    LIGHT,
    SHADOW,
    SOLID,
    SPHERE,
    STRIPE,
    STRIPE_WHITE,
    WALL,
    Scenes,
    render,
    surfaces,
)

COUNT = 24
PALETTE = np.array([[0.9, 0.5, 0.4], [0.3, 0.8, 0.5], [0.2, 0.3, 0.9]], np.float32)


def seen(size: int, shape: int, scale: float | None = None) -> Scenes:
    """COUNT scenes of one shape with the data set's own cameras, sizes and orientations."""
    objects = np.arange(COUNT)
    drawn = scenes(Options(size=size), objects, objects % 2)
    return Scenes(
        shape=np.full(COUNT, shape),
        scale=drawn.scale if scale is None else np.full(COUNT, scale, np.float32),
        yaw=drawn.yaw,
        palette=np.tile(PALETTE, (COUNT, 1, 1)),
        camera_to_world=drawn.camera_to_world,
        intrinsics=drawn.intrinsics,
    )


def project(view: Scenes, i: int, points: np.ndarray) -> np.ndarray:
    """World points [m, 3] to pixel coordinates [m, 2] of camera i, by the textbook."""
    world_to_camera = np.linalg.inv(view.camera_to_world[i].astype(np.float64))
    camera = world_to_camera @ np.concatenate([points, np.ones((len(points), 1))], axis=1).T
    image = view.intrinsics[i].astype(np.float64) @ camera[:3]
    assert (camera[2] > 0).all(), "the camera looks along +z"
    return (image[:2] / image[2]).T


def to_world(view: Scenes, i: int, points: np.ndarray) -> np.ndarray:
    """Points of the unit solid, turned about z, scaled, and set on the floor."""
    c, s = np.cos(view.yaw[i]), np.sin(view.yaw[i])
    turned = points @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]).T
    return view.scale[i] * (turned + np.array([0, 0, 1]))


def ring(z: float) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, 2000, endpoint=False)
    return np.stack([np.cos(angle), np.sin(angle), np.full_like(angle, z)], axis=1)


CORNERS = {
    CUBE: np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float),
    CYLINDER: np.concatenate([ring(-1), ring(1)]),
    CONE: np.concatenate([ring(-1), [[0, 0, 1]]]),
}


def centres(size: int) -> np.ndarray:
    """Pixel coordinates [size, size, 2] of the pixels' centres: (column + .5, row + .5)."""
    return np.stack(np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5), axis=-1)


def rays(view: Scenes, i: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Camera position [3] and unit directions [size, size, 3]."""
    pixels = np.concatenate([centres(size), np.ones((size, size, 1))], axis=-1)
    direction = pixels @ np.linalg.inv(view.intrinsics[i].astype(np.float64)).T
    direction = direction @ view.camera_to_world[i, :3, :3].astype(np.float64).T
    return view.camera_to_world[i, :3, 3].astype(np.float64), direction / np.linalg.norm(
        direction, axis=-1, keepdims=True
    )


@pytest.mark.parametrize("size", [32, 97])
@pytest.mark.parametrize("shape", [CUBE, CYLINDER, CONE])
def test_silhouettes_are_the_hulls_of_projected_points(shape: int, size: int) -> None:
    view = seen(size, shape)
    found = surfaces(view, size)
    for i in range(COUNT):
        hull = ConvexHull(project(view, i, to_world(view, i, CORNERS[shape])))
        outside = (centres(size) @ hull.equations[:, :2].T + hull.equations[:, 2]).max(axis=-1)
        sure = np.abs(outside) > 2e-3
        assert np.array_equal((found[i] >= SOLID)[sure], (outside < 0)[sure]), i
        assert (outside < 0).sum() > 12


@pytest.mark.parametrize("size", [32, 97])
def test_the_silhouette_of_a_sphere_is_a_cone_of_rays(size: int) -> None:
    view = seen(size, SPHERE)
    found = surfaces(view, size)
    for i in range(COUNT):
        origin, direction = rays(view, i, size)
        to_centre = np.array([0, 0, view.scale[i]]) - origin
        distance = np.linalg.norm(to_centre)
        angle = np.arccos(direction @ to_centre / distance)
        margin = np.arcsin(view.scale[i] / distance) - angle
        sure = np.abs(margin) > 1e-4
        assert np.array_equal((found[i] >= SOLID)[sure], (margin > 0)[sure]), i


@pytest.mark.parametrize("size", [32, 97])
def test_a_small_solid_lies_where_the_camera_says(size: int) -> None:
    view = seen(size, SPHERE, scale=0.3)
    found = surfaces(view, size)
    for i in range(COUNT):
        row, column = np.nonzero(found[i] >= SOLID)
        middle = np.array([column.mean() + 0.5, row.mean() + 0.5])
        expected = project(view, i, np.array([[0, 0, 0.3]]))[0]
        assert np.abs(middle - expected).max() < (0.3 if size == 97 else 0.6)


def test_the_stripe_marks_the_front() -> None:
    """The point (0, -1, 0) of the unit solid, turned by the yaw, is striped; one beside it is not."""
    size, checked = 97, 0
    for shape in (CUBE, CYLINDER, SPHERE):
        view = seen(size, shape)
        found = surfaces(view, size)
        for i in range(COUNT):
            points = to_world(view, i, np.array([[0, -1, 0.0], [1, -1, 0.0], [0, -2, 0.0]]))
            outward, to_camera = points[2] - points[0], view.camera_to_world[i, :3, 3] - points[0]
            if outward @ to_camera < 0.5 * np.linalg.norm(outward) * np.linalg.norm(to_camera):
                continue  # the front is seen at a grazing angle
            front, side = np.floor(project(view, i, points[:2])).astype(int)
            assert found[i, front[1], front[0]] == STRIPE, (shape, i)
            assert found[i, side[1], side[0]] != STRIPE, (shape, i)
            checked += 1
    assert checked > COUNT


def test_colours_of_a_sphere_its_shadow_and_the_room() -> None:
    size, view = 64, seen(64, SPHERE)
    images = render(view, size, supersample=1) / 255
    found = surfaces(view, size)
    shadowed = lit = 0
    for i in range(0, COUNT, 4):
        origin, direction = rays(view, i, size)
        centre, radius = np.array([0, 0, view.scale[i]]), view.scale[i]
        for y, x in np.ndindex(size, size):
            d = direction[y, x]
            if found[i, y, x] >= SOLID:
                b, c = d @ (origin - centre), (origin - centre) @ (origin - centre) - radius**2
                normal = (origin + (-b - np.sqrt(max(0, b * b - c))) * d - centre) / radius
                shade = AMBIENT + (1 - AMBIENT) * max(0, normal @ LIGHT)
                white = STRIPE_WHITE if found[i, y, x] == STRIPE else 0
                expected = shade * (white + (1 - white) * PALETTE[SOLID])
            elif found[i, y, x] == FLOOR:
                point = origin - origin[2] / d[2] * d
                reach = np.linalg.norm(np.cross(centre - point, LIGHT))
                if abs(reach - radius) < 1e-3:
                    continue
                shadowed, lit = shadowed + (reach < radius), lit + (reach > radius)
                shade = (AMBIENT + (1 - AMBIENT) * LIGHT[2]) * (1.1 - 0.01 * (point @ point))
                expected = shade * PALETTE[FLOOR] * (SHADOW if reach < radius else 1)
            else:
                continue
            assert np.abs(images[i, y, x] - np.minimum(expected, 1)).max() < 0.02, (i, y, x)
    assert shadowed > 100
    assert lit > 1000


def test_flat_faces_have_one_shade() -> None:
    size = 97
    top = AMBIENT + (1 - AMBIENT) * LIGHT[2]
    for shape in (CUBE, CYLINDER):
        view = seen(size, shape)
        images = render(view, size, supersample=1) / 255
        for i in range(COUNT):
            x, y = np.floor(project(view, i, to_world(view, i, np.array([[0, 0.4, 1.0]]))))[0].astype(int)
            assert np.abs(images[i, y, x] - top * PALETTE[SOLID]).max() < 0.01, (shape, i)


def test_every_wall_is_behind_the_floor() -> None:
    found = surfaces(seen(48, SPHERE), 48)
    for image in found:
        for column in image.T:
            background = column[column <= FLOOR]
            assert (np.diff(background.astype(int)) >= 0).all(), "from the top of the image: wall, then floor"
    assert (found == WALL).any()


def test_supersampling_is_the_mean_of_a_finer_image() -> None:
    view = seen(40, CUBE)
    finer = Scenes(
        **{**view.__dict__, "intrinsics": view.intrinsics * np.array([[2], [2], [1]], np.float32)},
    )
    expected = render(finer, 80, supersample=1).reshape(COUNT, 40, 2, 40, 2, 3).mean(axis=(2, 4))
    assert np.abs(render(view, 40, supersample=2) - expected).max() <= 1


def test_an_image_does_not_depend_on_its_company() -> None:
    objects = np.arange(40)
    view = scenes(Options(size=32), objects, objects % 2)
    together = render(view, 32, supersample=2)
    for rows in (np.array([7]), np.array([39, 0, 20, 21])):
        assert np.array_equal(render(view.take(rows), 32, supersample=2), together[rows])
