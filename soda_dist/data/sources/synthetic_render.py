"""Analytic ray casting of one coloured solid on the floor of a room, in numpy.

World: right-handed, z up, the floor at z = 0. Camera: OpenCV's convention, x right, y down, z forward.
`camera_to_world` maps homogeneous camera to world coordinates, `intrinsics` camera coordinates to pixels, where the
centre of pixel (row i, column j) is (j + .5, i + .5). Rays are origin + t direction; directions are not normalised, so
that t is depth along the camera's axis.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]  # float32 throughout

CUBE, CYLINDER, SPHERE, CONE = range(4)
WALL, FLOOR, SOLID, STRIPE = range(4)
"""Surfaces; the first three index a palette."""

ROOM = 5.0
"""Distance of the back, left and right walls from the centre."""
LIGHT = np.array([-0.45, -0.6, 0.9]) / np.linalg.norm([-0.45, -0.6, 0.9])
"""Direction to the light; high enough that no shadow reaches a wall."""
AMBIENT = 0.5
SHADOW = 0.6
STRIPE_WHITE = 0.8
"""Fraction of white in the stripe's colour; the rest is the solid's."""
STRIPE_SLOPE = 0.22
"""Tangent of half the stripe's angle around the solid's axis, at its front (-y)."""
BOUND = (3.0, 2.0, 1.0, 2.0)
"""Squared radius of each solid's bounding sphere, in units of its half height."""
CHUNK_RAYS = 16384
"""Rays per chunk; keeps numpy's operands in the CPU cache."""


@dataclass(frozen=True)
class Scenes:
    """n scenes with one camera each.

    Args:
        shape: int [n], CUBE, CYLINDER, SPHERE or CONE.
        scale: float32 [n], half the solid's height and width; its centre is (0, 0, scale).
        yaw: float32 [n], radians about z, counter-clockwise seen from above.
        palette: float32 [n, 3, 3] in [0, 1], RGB of wall, floor, solid.
        camera_to_world: float32 [n, 4, 4].
        intrinsics: float32 [n, 3, 3], pixels.
    """

    shape: NDArray[np.integer]
    scale: Floats
    yaw: Floats
    palette: Floats
    camera_to_world: Floats
    intrinsics: Floats

    def __len__(self) -> int:
        return len(self.shape)

    def take(self, rows: NDArray[np.integer]) -> "Scenes":
        """Select scenes."""
        return Scenes(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def render(scenes: Scenes, size: int, *, supersample: int) -> NDArray[np.uint8]:
    """Render uint8 [n, size, size, 3] RGB; a pixel is the mean of supersample x supersample rays."""
    images = np.empty((len(scenes), size, size, 3), np.uint8)
    ticks = [(k + 0.5) / supersample for k in range(supersample)]
    for rows in _chunks(scenes, size):
        part = scenes.take(rows)
        colour = np.zeros((len(part), size * size, 3), np.float32)
        for y in ticks:
            for x in ticks:
                colour += _shaded(part, size, x, y)
        colour *= 255 / supersample**2
        colour += 0.5
        images[rows] = np.minimum(colour, 255).astype(np.uint8).reshape(-1, size, size, 3)
    return images


def surfaces(scenes: Scenes, size: int) -> NDArray[np.uint8]:
    """Find WALL, FLOOR, SOLID or STRIPE at each pixel's centre, uint8 [n, size, size]."""
    found = np.empty((len(scenes), size, size), np.uint8)
    for rows in _chunks(scenes, size):
        part = scenes.take(rows)
        found[rows] = _trace(part, *_rays(part, size, 0.5, 0.5))[0].reshape(-1, size, size)
    return found


def _chunks(scenes: Scenes, size: int) -> Iterator[NDArray[np.integer]]:
    """Yield rows of scenes of one shape, `CHUNK_RAYS` at a time."""
    count = max(1, CHUNK_RAYS // size**2)
    for shape in np.unique(scenes.shape):
        rows = np.flatnonzero(scenes.shape == shape)
        yield from (rows[start : start + count] for start in range(0, len(rows), count))


def _rays(scenes: Scenes, size: int, x: float, y: float) -> tuple[Floats, Floats]:
    """Origin float32 [3, n, 1] and direction [3, n, size^2] through the point (x, y) of each pixel."""
    row, column = np.mgrid[:size, :size].reshape(2, -1).astype(np.float32)
    pixels = np.stack([column + np.float32(x), row + np.float32(y), np.ones_like(row)])
    from_pixels = np.linalg.inv(scenes.intrinsics.astype(np.float64))
    to_world = scenes.camera_to_world[:, :3, :3].astype(np.float64) @ from_pixels
    direction = to_world.transpose(1, 0, 2).reshape(-1, 3).astype(np.float32) @ pixels
    return scenes.camera_to_world[:, :3, 3].T[..., None], direction.reshape(3, len(scenes), -1)


def _shaded(scenes: Scenes, size: int, x: float, y: float) -> Floats:
    surface, shade = _trace(scenes, *_rays(scenes, size, x, y))
    stripe = STRIPE_WHITE + (1 - STRIPE_WHITE) * scenes.palette[:, SOLID]
    palette = np.concatenate([scenes.palette, stripe[:, None]], axis=1).reshape(-1, 3)
    row = surface + 4 * np.arange(len(scenes))[:, None]
    return palette.take(row, axis=0) * shade[..., None]


def _trace(scenes: Scenes, origin: Floats, direction: Floats) -> tuple[NDArray[np.uint8], Floats]:
    """Surface uint8 [n, p] and shade float32 [n, p] at each ray's first hit; all scenes have the same shape."""
    surface, shade, point = _room(origin, direction)
    sun = np.broadcast_to(LIGHT.astype(np.float32)[:, None, None], (3, len(scenes), 1))
    shape = int(scenes.shape[0])

    below = np.flatnonzero(_candidates(scenes, point, sun) & (surface == FLOOR))
    _, o, d = _local(scenes, below, point, sun)
    shade.reshape(-1)[below[np.isfinite(_depth(shape, o, d))]] *= SHADOW

    near = np.flatnonzero(_candidates(scenes, origin, direction))
    scene, o, d = _local(scenes, near, origin, direction)
    depth = _depth(shape, o, d)
    hit = np.isfinite(depth)
    place = o[:, hit] + depth[hit] * d[:, hit]
    light = _turn(sun[..., 0], scenes.yaw)[:, scene[hit]]
    shade.reshape(-1)[near[hit]] = _lambert(np.einsum("im,im->m", _normal(shape, place), light))
    surface.reshape(-1)[near[hit]] = np.where(np.abs(place[0]) < -STRIPE_SLOPE * place[1], STRIPE, SOLID)
    return surface, shade


def _lambert(cosine: Floats) -> Floats:
    shade: Floats = AMBIENT + (1 - AMBIENT) * np.maximum(cosine, 0)
    return shade


def _room(origin: Floats, direction: Floats) -> tuple[NDArray[np.uint8], Floats, Floats]:
    """Surface, shade and point [3, n, p] where each ray hits the floor or a wall."""
    (ox, oy, oz), (dx, dy, dz) = origin, direction
    with np.errstate(divide="ignore"):
        floor = np.where(dz < 0, -oz / dz, np.inf)
        back = np.where(dy > 0, (ROOM - oy) / dy, np.inf)
        side = np.where(dx > 0, ROOM - ox, ROOM + ox) / np.abs(dx)
    wall = np.minimum(side, back)
    on_floor = floor < wall
    point = origin + np.minimum(floor, wall) * direction
    normals = np.array([[0, 0, 1], [0, -1, 0], [1, 0, 0], [-1, 0, 0]])
    flat, behind, left, right = _lambert(normals @ LIGHT).tolist()
    walls = np.where(side < back, np.where(dx > 0, right, left), behind)
    # Darker corners: a cheap approximation of ambient occlusion.
    fade = 1.1 - 0.01 * (point[0] ** 2 + point[1] ** 2)
    return on_floor.astype(np.uint8), (np.where(on_floor, flat, walls) * fade).astype(np.float32), point


def _candidates(scenes: Scenes, origin: Floats, direction: Floats) -> NDArray[np.bool_]:
    """bool [n, p]: rays that hit the solid's bounding sphere."""
    x, y, z = origin[0], origin[1], origin[2] - scenes.scale[:, None]
    dx, dy, dz = direction
    along = x * dx + y * dy + z * dz
    beyond = x * x + y * y + z * z - (BOUND[int(scenes.shape[0])] * scenes.scale**2)[:, None]
    return along * along > (dx * dx + dy * dy + dz * dz) * beyond


def _local(
    scenes: Scenes, rays: NDArray[np.integer], origin: Floats, direction: Floats
) -> tuple[NDArray[np.integer], Floats, Floats]:
    """Scene, origin and direction [3, m] of the chosen rays, in the frame of the unit solid."""
    shape = np.broadcast_shapes(origin.shape, direction.shape)
    scene = rays // shape[2]
    centre = np.stack([0 * scenes.scale, 0 * scenes.scale, scenes.scale])[..., None]
    o, d = (
        a[..., 0].take(scene, axis=1) if a.shape[2] == 1 else a.reshape(3, -1).take(rays, axis=1)
        for a in (origin - centre, direction)
    )
    yaw, scale = scenes.yaw[scene], scenes.scale[scene]
    return scene, _turn(o, yaw) / scale, _turn(d, yaw) / scale


def _turn(vector: Floats, yaw: Floats) -> Floats:
    """Rotate vectors [3, m] from world to solid, by -yaw [m] about z."""
    cosine, sine = np.cos(yaw), np.sin(yaw)
    return np.stack([cosine * vector[0] + sine * vector[1], cosine * vector[1] - sine * vector[0], vector[2]])


def _depth(shape: int, origin: Floats, direction: Floats) -> Floats:
    """Nearest positive depth at which each ray enters the unit solid, float32 [m]; infinite for a miss."""
    with np.errstate(divide="ignore", invalid="ignore"):
        depth = {CUBE: _cube, CYLINDER: _cylinder, SPHERE: _sphere, CONE: _cone}[shape](origin, direction)
    return np.where(depth > 0, depth, np.inf)


def _cube(origin: Floats, direction: Floats) -> Floats:
    low, high = (-1 - origin) / direction, (1 - origin) / direction
    enter, leave = np.minimum(low, high).max(axis=0), np.maximum(low, high).min(axis=0)
    return np.where(enter < leave, enter, np.inf)


def _sphere(origin: Floats, direction: Floats) -> Floats:
    a, b, c = (direction**2).sum(axis=0), (origin * direction).sum(axis=0), (origin**2).sum(axis=0) - 1
    return (-b - np.sqrt(b * b - a * c)) / a


def _cylinder(origin: Floats, direction: Floats) -> Floats:
    a, b, c = ((u[:2] * v[:2]).sum(axis=0) for u, v in ((direction, direction), (origin, direction), (origin, origin)))
    side = (-b - np.sqrt(b * b - a * (c - 1))) / a
    side = np.where(np.abs(origin[2] + side * direction[2]) <= 1, side, np.inf)
    top = (1 - origin[2]) / direction[2]
    x, y = origin[:2] + top * direction[:2]
    return np.fmin(side, np.where(x * x + y * y <= 1, top, np.inf))


def _cone(origin: Floats, direction: Floats) -> Floats:
    """x^2 + y^2 = ((1 - z) / 2)^2 between z = -1 and the apex at z = 1; the base lies on the floor."""
    h, k = (1 - origin[2]) / 2, -direction[2] / 2
    a = direction[0] ** 2 + direction[1] ** 2 - k * k
    b = origin[0] * direction[0] + origin[1] * direction[1] - h * k
    c = origin[0] ** 2 + origin[1] ** 2 - h * h
    root = np.sqrt(b * b - a * c)
    first, second = (-b - root) / a, (-b + root) / a
    return np.fmin(*(np.where(np.abs(origin[2] + t * direction[2]) <= 1, t, np.inf) for t in (first, second)))


def _normal(shape: int, point: Floats) -> Floats:
    """Outward unit normals at points of the unit solid's surface, float32 [3, m]."""
    x, y, z = point
    if shape == CUBE:
        face = np.abs(point).argmax(axis=0)
        return np.where(np.arange(3)[:, None] == face, np.sign(point), 0)
    if shape == SPHERE:
        return point
    if shape == CYLINDER:
        top = z > 1 - 1e-4
        return np.stack([np.where(top, 0, x), np.where(top, 0, y), top])
    radius = np.maximum(np.sqrt(x * x + y * y), 1e-6)
    return np.stack([x / radius, y / radius, np.full_like(z, 0.5)]) / np.float32(np.sqrt(1.25))
