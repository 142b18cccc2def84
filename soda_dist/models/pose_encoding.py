"""Where a view was taken, as grids of pixels or rays or as one vector (section 3.3, appendix C, G.3, table 8).

Everything up to the linear layer is elementwise float32, since neither autocast nor TF32 reaches that: with a scale of
1e-4 an error of 1e-4 in a coordinate is a radian in its encoding.
"""

import math
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

PIXEL_POSE = 4
"""A frame: (y0, x0, y1, x1), top left and bottom right corner of the view in its original image, which spans [-1, 1]. A
mirrored view has x0 > x1."""
CAMERA_POSE = 21
"""The first three rows of camera_to_world, [3, 4] row-major, then intrinsics, [3, 3] row-major.

OpenCV's axes: x right, y down, z forward. The world's origin is the object's centre, its z axis points up. Intrinsics
map camera coordinates to multiples of (u, v, 1), u and v in [0, 1] over the view's width and height."""

Kind = Literal["pixels", "cameras"]
Form = Literal["concat", "normalized", "plane", "sphere"]
Coordinates = Literal["cartesian", "polar"]
Reference = Literal["absolute", "relative"]

LEAST_COSINE = 1e-3
"""Rays more than acos(this) = 89.94 degrees off the camera's axis meet the plane as if they were at that angle."""


def pixel_grid(frames: Tensor, h: int, w: int) -> Tensor:
    """The 2D grid of G.3: where the centres of a view's cells lie in its original image.

    Args:
        frames: float [B, 4], see `PIXEL_POSE`.
        h, w: rows and columns.

    Returns:
        float32 [B, h, w, 2], (x, y), in [-1, 1] for a view inside its image.
    """
    y0, x0, y1, x1 = _checked("frames", frames, PIXEL_POSE)[:, :, None].unbind(1)
    u, v = _centres(w, frames.device), _centres(h, frames.device)
    x, y = x0 * (1 - u) + x1 * u, y0 * (1 - v) + y1 * v
    return torch.stack([x[:, None].expand(-1, h, -1), y[:, :, None].expand(-1, -1, w)], -1)


def rays(cameras: Tensor, h: int, w: int) -> tuple[Tensor, Tensor]:
    """The grid of rays, origin and direction, through the centres of a view's cells (section 3.3, G.3).

    Args:
        cameras: float [B, 21], see `CAMERA_POSE`. Intrinsics may have skew and any principal point. A singular matrix,
            as in a pose of zeros, gives finite numbers without meaning.
        h, w: rows and columns.

    Returns:
        origins, float32 [B, 1, 1, 3], and directions, float32 [B, h, w, 3], of length one, both in the world.
    """
    rotation, position, intrinsics = _parts(cameras)
    first, second, third = intrinsics.unbind(1)
    # The columns of the inverse times the determinant, of which the sign alone matters to a direction.
    columns = [torch.linalg.cross(*pair) for pair in ((second, third), (third, first), (first, second))]
    sign = torch.where((first * columns[0]).sum(-1, keepdim=True) < 0, -1.0, 1.0)
    right, down, corner = (_turned(rotation, sign * column)[:, None, None] for column in columns)
    u, v = _centres(w, cameras.device)[:, None], _centres(h, cameras.device)[:, None, None]
    return position[:, None, None], F.normalize(u * right + v * down + corner, dim=-1)


def viewing_directions(cameras: Tensor) -> Tensor:
    """The cameras' forward axes in the world: float [B, 21] to float32 [B, 3], of length one."""
    return F.normalize(_parts(cameras)[0][:, :, 2], dim=-1)


def ray_points(origins: Tensor, directions: Tensor, *, form: Form, forward: Tensor, radius: float) -> Tensor:
    """Representation of a ray (table 8): o and d, or the point o + s d.

    - `concat`: o and d themselves.
    - `normalized`: s = 1, so that |s d| = 1.
    - `plane`: on the plane through the world's origin that faces the camera, perpendicular to its forward axis. Our
      reading: a ray at 89.94 degrees or more from this axis is cast as one at that angle, so that s is at most a
      thousand times the plane's distance; a plane behind the camera is met at s = 0, in the camera. Continuous.
    - `sphere`: on the sphere around the world's origin, where the ray first meets it from the camera on. Our reading:
      a ray that misses takes the sphere's point nearest to it, which is the limit of those that just hit.

    Args:
        origins, directions: as `rays` gives them.
        form: which of these.
        forward: float32 [B, 1, 1, 3], the cameras' forward axes, of length one; read by `plane`.
        radius: of the sphere, positive; read by `sphere`.

    Returns:
        float32 [B, h, w, 3]; [B, h, w, 6] for `concat`. Finite for finite arguments.
    """
    _allowed("form", form, Form)
    match form:
        case "concat":
            return torch.cat([origins.expand_as(directions), directions], -1)
        case "normalized":
            return origins + directions
        case "plane":
            distance = -_dot(origins, forward)
            return origins + distance.clamp_min(0) / _dot(directions, forward).clamp_min(LEAST_COSINE) * directions
        case "sphere":
            return _on_sphere(origins, directions, radius)


def _on_sphere(origins: Tensor, directions: Tensor, radius: float) -> Tensor:
    """[B, h, w, 3]: solved around the point of the ray's line nearest to the centre, where nothing cancels."""
    along = _dot(origins, directions)
    nearest = origins - along * directions
    distance = _length(nearest)
    # Inside, but for rounding, the line is nearer than the radius.
    half = ((radius - distance) * (radius + distance)).clamp_min(0).sqrt()
    inside, ahead = _length(origins) < radius, along < 0
    meets = inside | (ahead & (distance < radius))
    missed = radius * F.normalize(torch.where(ahead, nearest, origins), dim=-1)
    return torch.where(meets, nearest + torch.where(inside, half, -half) * directions, missed)


def cartesian(points: Tensor, *, extent: float) -> Tensor:
    """(x, y, z), float32 [..., 3] to the same, divided by `extent` and clipped to [-1, 1] (table 8, appendix C)."""
    return (points / extent).clamp(-1, 1)


def polar(points: Tensor, *, extent: float) -> Tensor:
    """(radius, altitude, azimuth), each in [-1, 1] (table 8, appendix C).

    Our reading: altitude is the elevation above the xy plane over pi / 2, azimuth the angle from x towards y over pi,
    with zero where it has no meaning; the radius is divided by `extent` and clipped. float32 [..., 3] to the same.
    """
    x, y, z = points.unbind(-1)
    across = torch.hypot(x, y)
    radius = torch.hypot(across, z) / extent
    altitude, azimuth = torch.atan2(z, across) / (math.pi / 2), torch.atan2(y, x) / math.pi
    return torch.stack([radius, altitude, azimuth], -1).clamp(-1, 1)


def sinusoidal(coordinates: Tensor, *, dim: int, scale: float) -> Tensor:
    """Positional encoding (appendix C, figure 10): sin and cos of (p / scale) / 10000 ** (2 i / d).

    Our reading: each coordinate has an equal, even share d of the channels, its sines before its cosines; channels that
    are left over are zero. For p in [-1, 1] and a scale of 1e-4 the angular frequencies fall from 1e4 to about 1.

    Args:
        coordinates: float [..., K] in [-1, 1].
        dim: width of the encoding, at least 2 K.
        scale: divides the coordinates.

    Returns:
        float32 [..., dim], under autocast too.
    """
    count = coordinates.shape[-1]
    half = _half_share(count, dim)
    exponents = torch.arange(half, device=coordinates.device, dtype=torch.float32) / half
    angles = coordinates.float()[..., None] / scale / 10_000**exponents
    encoding = angles.new_zeros(*coordinates.shape[:-1], dim)
    shares = encoding[..., : count * 2 * half].unflatten(-1, (count, 2, half))
    # One after the other into their places: joined afterwards, twice the memory would be needed for a moment.
    shares[..., 0, :] = angles.sin()
    shares[..., 1, :] = angles.cos()
    return encoding


class PoseGrid(nn.Module):
    """c_E and c_D of section 3.3: a view's grid of pixels or rays, encoded, as channels beside its first layer's.

    The encoding is `dim` wide where the result has `channels`, so for the backward pass it is computed anew, not kept.

    Args:
        kind: what a pose is: `pixels`, a frame, or `cameras`.
        form: what stands for a ray, see `ray_points`; read with cameras, as are the next three.
        coordinates: `cartesian` or `polar`. In `concat` d is a direction: its length is 1 whatever the extent.
        radius: of the sphere that rays are cast on.
        extent: length that becomes 1 before it is encoded, in the same unit; what is longer is clipped.
        dim: width of the encoding.
        scale: divides the coordinates in it.
        channels: of the result.

    Raises:
        ValueError: an unknown kind, form or coordinates, or too small a width.
    """

    def __init__(
        self,
        *,
        kind: Kind,
        form: Form,
        coordinates: Coordinates,
        radius: float,
        extent: float,
        dim: int,
        scale: float,
        channels: int,
    ) -> None:
        super().__init__()
        _allowed("kind", kind, Kind)
        _allowed("form", form, Form)
        _allowed("coordinates", coordinates, Coordinates)
        _half_share(2 if kind == "pixels" else 6 if form == "concat" else 3, dim)
        self.kind, self.form, self.coordinates = kind, form, coordinates
        self.radius, self.extent = radius, extent
        self.dim, self.scale, self.channels = dim, scale, channels
        self.linear = nn.Linear(dim, channels, bias=False)

    def forward(self, poses: Tensor, h: int, w: int, keep: Tensor | None) -> Tensor:
        """Channels for the cells of an h x w grid.

        Args:
            poses: float32 [B, P], see `PIXEL_POSE` and `CAMERA_POSE`.
            h, w: rows and columns.
            keep: bool [B]: False where the result is zero, as if the data had no poses; None = no mask.

        Returns:
            float32 [B, channels, h, w], contiguous; of autocast's dtype under autocast.
        """
        if torch.is_grad_enabled():
            grid = checkpoint(self._embedded, poses, h, w, use_reentrant=False, preserve_rng_state=False)
        else:
            grid = self._embedded(poses, h, w)
        return grid if keep is None else grid.masked_fill(~keep[:, None, None, None], 0)

    def cells(self, poses: Tensor, h: int, w: int) -> Tensor:
        """The cells' coordinates, float32 [B, h, w, K] in [-1, 1]; K = 2 for pixels, 6 for `concat`, else 3."""
        if self.kind == "pixels":
            return pixel_grid(poses, h, w)
        forward = viewing_directions(poses)[:, None, None]
        points = ray_points(*rays(poses, h, w), form=self.form, forward=forward, radius=self.radius)
        described = polar if self.coordinates == "polar" else cartesian
        if self.form != "concat":
            return described(points, extent=self.extent)
        origins, directions = points.chunk(2, -1)
        return torch.cat([described(origins, extent=self.extent), described(directions, extent=1)], -1)

    def _embedded(self, poses: Tensor, h: int, w: int) -> Tensor:
        encoding = sinusoidal(self.cells(poses, h, w), dim=self.dim, scale=self.scale)
        return self.linear(encoding).permute(0, 3, 1, 2).contiguous()


class PoseVector(nn.Module):
    """Both cameras as one vector that modulates (G.3, table 8): places and viewing directions, polar, encoded.

    It has no parameters: the modulation's linear layers follow it. Our reading: roll is left out, as an upright camera
    has none; a direction counts as a place at distance 1 whatever the extent.

    - `absolute`: place and direction of the source, then of the target, in the world.
    - `relative`: place and direction of the target in the frame of the source. Our reading: azimuth is measured from
      the source's forward axis to its left, altitude towards its top. So a target that is seen from nearly the source's
      place does not sit at a pole, as it would with the forward axis upright.

    Args:
        form: which of these.
        extent: length that becomes 1 before it is encoded; what is longer is clipped.
        dim: width of the vector, at least 24 (absolute) or 12 (relative); 2 for each number.
        scale: divides the coordinates in the encoding.
    """

    def __init__(self, *, form: Reference, extent: float, dim: int, scale: float) -> None:
        super().__init__()
        _allowed("form", form, Reference)
        _half_share(12 if form == "absolute" else 6, dim)
        self.form, self.extent, self.dim, self.scale = form, extent, dim, scale

    def forward(self, source: Tensor, target: Tensor, keep: Tensor | None) -> Tensor:
        """float32 [B, dim], under autocast too.

        Args:
            source: float32 [B, 21], the source's camera, see `CAMERA_POSE`.
            target: float32 [B, 21], the target's.
            keep: bool [B]: False where the result is zero, as if there were no poses. None: all are kept.
        """
        places, directions = self._places_and_directions(source, target)
        both = torch.stack([polar(places, extent=self.extent), polar(directions, extent=1)], 2)
        vector = sinusoidal(both.flatten(1), dim=self.dim, scale=self.scale)
        return vector if keep is None else vector.masked_fill(~keep[:, None], 0)

    def _places_and_directions(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """float32 [B, N, 3] each: of both cameras in the world, or of the target alone in the source's frame."""
        (rotation, origin, _), (_, place, _) = _parts(source), _parts(target)
        direction = viewing_directions(target)
        if self.form == "absolute":
            return torch.stack([origin, place], 1), torch.stack([viewing_directions(source), direction], 1)
        right, down, forward = rotation.unbind(2)
        axes = torch.stack([forward, -right, -down], 1)
        return _turned(axes, place - origin)[:, None], _turned(axes, direction)[:, None]


def _parts(cameras: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rotation [B, 3, 3] (camera to world), position [B, 3] and intrinsics [B, 3, 3], float32."""
    placed, intrinsics = _checked("cameras", cameras, CAMERA_POSE).split([12, 9], 1)
    placed = placed.unflatten(1, (3, 4))
    return placed[:, :, :3], placed[:, :, 3], intrinsics.unflatten(1, (3, 3))


def _checked(name: str, poses: Tensor, width: int) -> Tensor:
    if poses.ndim != 2 or poses.shape[1] != width:
        raise ValueError(f"{name}: got {list(poses.shape)}; allowed: [B, {width}]")
    return poses.float()


def _allowed(name: str, got: str, literal: Any) -> None:
    if got not in get_args(literal):
        raise ValueError(f"{name}: got {got}; allowed: {', '.join(get_args(literal))}")


def _half_share(count: int, dim: int) -> int:
    """Sines (and as many cosines) of each of `count` coordinates in an encoding of width `dim`."""
    if dim < 2 * count:
        raise ValueError(f"dim: got {dim} for {count} coordinates; allowed: >= {2 * count}")
    return dim // count // 2


def _centres(count: int, device: torch.device) -> Tensor:
    """float32 [count]: centres of the cells of [0, 1]."""
    return (torch.arange(count, device=device, dtype=torch.float32) + 0.5) / count


def _turned(matrix: Tensor, vector: Tensor) -> Tensor:
    """[B, 3, 3] times [B, 3]."""
    return (matrix * vector[:, None]).sum(-1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """[..., 3] and [..., 3] to [..., 1]."""
    return (a * b).sum(-1, keepdim=True)


def _length(a: Tensor) -> Tensor:
    """[..., 3] to [..., 1]."""
    return torch.linalg.vector_norm(a, dim=-1, keepdim=True)
