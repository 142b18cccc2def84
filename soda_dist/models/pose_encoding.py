"""Pose encodings: grids of pixels or rays, or one vector (section 3.3, appendix C, G.3, table 8).

Everything before the linear layer is elementwise float32, which neither autocast nor TF32 changes: with a scale of 1e-4
an error of 1e-4 in a coordinate is a radian in its encoding.
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
"""The first three rows of camera_to_world, [3, 4] row-major, then intrinsics, [3, 3] row-major. OpenCV's axes: x right,
y down, z forward. The world's origin is the object's centre, its z axis points up. Intrinsics map camera coordinates to
multiples of (u, v, 1), u and v in [0, 1] over the view's width and height."""

Kind = Literal["pixels", "cameras"]
Form = Literal["concat", "normalized", "plane", "sphere"]
Coordinates = Literal["cartesian", "polar"]
Reference = Literal["absolute", "relative"]

LEAST_COSINE = 1e-3
"""Rays more than acos(this) = 89.94 degrees off the camera's axis are cast at that angle."""


def pixel_grid(frames: Tensor, h: int, w: int) -> Tensor:
    """Locate the cells of views in their original images (the 2D grid of G.3): float32 [B, h, w, 2] of (x, y).

    Takes frames, float [B, 4] (see `PIXEL_POSE`); centres of cells are in [-1, 1] for a view inside its image.
    """
    y0, x0, y1, x1 = _checked("frames", frames, PIXEL_POSE)[:, :, None].unbind(1)
    u, v = _centres(w, frames.device), _centres(h, frames.device)
    x, y = x0 * (1 - u) + x1 * u, y0 * (1 - v) + y1 * v
    return torch.stack([x[:, None].expand(-1, h, -1), y[:, :, None].expand(-1, -1, w)], -1)


def rays(cameras: Tensor, h: int, w: int) -> tuple[Tensor, Tensor]:
    """Cast rays through the centres of a view's h x w cells (section 3.3, G.3), in world coordinates.

    Args:
        cameras: float [B, 21], see `CAMERA_POSE`. Intrinsics may have skew and any principal point. A singular matrix,
            as in a pose of zeros, gives finite but meaningless numbers.

    Returns:
        origins, float32 [B, 1, 1, 3], and unit directions, float32 [B, h, w, 3].
    """
    rotation, position, intrinsics = _parts(cameras)
    first, second, third = intrinsics.unbind(1)
    # Columns of the inverse times the determinant, of which only the sign matters for a direction.
    columns = [torch.linalg.cross(*pair) for pair in ((second, third), (third, first), (first, second))]
    sign = torch.where((first * columns[0]).sum(-1, keepdim=True) < 0, -1.0, 1.0)
    right, down, corner = (_turned(rotation, sign * column)[:, None, None] for column in columns)
    u, v = _centres(w, cameras.device)[:, None], _centres(h, cameras.device)[:, None, None]
    return position[:, None, None], F.normalize(u * right + v * down + corner, dim=-1)


def viewing_directions(cameras: Tensor) -> Tensor:
    """Return the cameras' forward axes in the world: float [B, 21] to unit float32 [B, 3]."""
    return F.normalize(_parts(cameras)[0][:, :, 2], dim=-1)


def ray_points(origins: Tensor, directions: Tensor, *, form: Form, forward: Tensor, radius: float) -> Tensor:
    """Represent rays (table 8) by o and d, or by the point o + s d: float32 [B, h, w, 3], or 6 for `concat`.

    - `concat`: o and d.
    - `normalized`: s = 1, so that |s d| = 1.
    - `plane`: on the plane through the world's origin perpendicular to the camera's forward axis. Our reading: a ray at
      89.94 degrees or more from this axis is cast at that angle, so that s is at most a thousand times the plane's
      distance; a plane behind the camera is met at s = 0, in the camera. Continuous.
    - `sphere`: on the sphere around the world's origin, where the ray first meets it in front of the camera. Our
      reading: a ray that misses takes the nearest point of the sphere, the limit of rays that just hit.

    Args:
        origins, directions: as returned by `rays`; the result is finite if they are.
        forward: float32 [B, 1, 1, 3], the cameras' unit forward axes, for `plane`.
        radius: of the sphere, positive, for `sphere`.
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
    """Meet the sphere, [B, h, w, 3]: solved around the line's point nearest to the centre, where nothing cancels."""
    along = _dot(origins, directions)
    nearest = origins - along * directions
    distance = _length(nearest)
    # Seen from inside, the line is nearer than the radius, except for rounding.
    half = ((radius - distance) * (radius + distance)).clamp_min(0).sqrt()
    inside, ahead = _length(origins) < radius, along < 0
    meets = inside | (ahead & (distance < radius))
    missed = radius * F.normalize(torch.where(ahead, nearest, origins), dim=-1)
    return torch.where(meets, nearest + torch.where(inside, half, -half) * directions, missed)


def cartesian(points: Tensor, *, extent: float) -> Tensor:
    """Divide (x, y, z), float32 [..., 3], by `extent` and clip to [-1, 1] (table 8, appendix C)."""
    return (points / extent).clamp(-1, 1)


def polar(points: Tensor, *, extent: float) -> Tensor:
    """Convert float32 [..., 3] to (radius, altitude, azimuth), each in [-1, 1] (table 8, appendix C).

    Our reading: altitude is the elevation above the xy plane over pi / 2, azimuth the angle from x towards y over pi,
    zero where undefined; the radius is divided by `extent` and clipped.
    """
    x, y, z = points.unbind(-1)
    across = torch.hypot(x, y)
    radius = torch.hypot(across, z) / extent
    altitude, azimuth = torch.atan2(z, across) / (math.pi / 2), torch.atan2(y, x) / math.pi
    return torch.stack([radius, altitude, azimuth], -1).clamp(-1, 1)


def sinusoidal(coordinates: Tensor, *, dim: int, scale: float) -> Tensor:
    """Encode positions (appendix C, figure 10): sin and cos of (p / scale) / 10000 ** (2 i / d).

    Our reading: each coordinate has an equal, even share d of the channels, sines before cosines; left-over channels
    are zero. For p in [-1, 1] and a scale of 1e-4 the angular frequencies fall from 1e4 to about 1.

    Takes float [..., K] in [-1, 1]; returns float32 [..., dim], under autocast too. `dim` is at least 2 K.
    """
    count = coordinates.shape[-1]
    half = _half_share(count, dim)
    exponents = torch.arange(half, device=coordinates.device, dtype=torch.float32) / half
    angles = coordinates.float()[..., None] / scale / 10_000**exponents
    encoding = angles.new_zeros(*coordinates.shape[:-1], dim)
    shares = encoding[..., : count * 2 * half].unflatten(-1, (count, 2, half))
    # Written in place: a concatenation would briefly need twice the memory.
    shares[..., 0, :] = angles.sin()
    shares[..., 1, :] = angles.cos()
    return encoding


class PoseGrid(nn.Module):
    """c_E and c_D of section 3.3: a view's encoded grid of pixels or rays, as channels beside its first layer's.

    The backward pass recomputes the encoding, which is `dim` wide where the result has `channels`.

    Args:
        kind: meaning of a pose: `pixels`, a frame, or `cameras`.
        form: representation of a ray, see `ray_points`; for cameras, as are the next three.
        coordinates: `cartesian` or `polar`. In `concat` d is a direction: its length is 1 whatever the extent.
        radius: of the sphere.
        extent: length that becomes 1 before encoding, in the same unit; longer ones are clipped.
        dim, scale: of the encoding, see `sinusoidal`.

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
        """Embed poses as float32 [B, channels, h, w], contiguous; of autocast's dtype under autocast.

        Args:
            poses: float32 [B, P], see `PIXEL_POSE` and `CAMERA_POSE`.
            keep: bool [B]: False = zeros, as if the data had no poses; None = no mask.
        """
        if torch.is_grad_enabled():
            grid = checkpoint(self._embedded, poses, h, w, use_reentrant=False, preserve_rng_state=False)
        else:
            grid = self._embedded(poses, h, w)
        return grid if keep is None else grid.masked_fill(~keep[:, None, None, None], 0)

    def cells(self, poses: Tensor, h: int, w: int) -> Tensor:
        """Return the cells' coordinates, float32 [B, h, w, K] in [-1, 1]; K = 2 for pixels, 6 for `concat`, else 3."""
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
    """Both cameras as one modulating vector (G.3, table 8): positions and viewing directions, polar, encoded.

    It has no parameters: the modulation's linear layers follow it. Our reading: roll is left out, as an upright camera
    has none; a direction counts as a position at distance 1 whatever the extent.

    - `absolute`: position and direction of the source, then of the target, in the world.
    - `relative`: position and direction of the target in the source's frame. Our reading: azimuth is measured from the
      source's forward axis to its left, altitude towards its top. So a target close to the source's view does not sit
      at a pole, as it would with the forward axis upright.

    Args:
        extent: length that becomes 1 before encoding; longer ones are clipped.
        dim: width of the vector, at least 24 (absolute) or 12 (relative), 2 per number.
        scale: of the encoding, see `sinusoidal`.
    """

    def __init__(self, *, form: Reference, extent: float, dim: int, scale: float) -> None:
        super().__init__()
        _allowed("form", form, Reference)
        _half_share(12 if form == "absolute" else 6, dim)
        self.form, self.extent, self.dim, self.scale = form, extent, dim, scale

    def forward(self, source: Tensor, target: Tensor, keep: Tensor | None) -> Tensor:
        """Encode cameras, float32 [B, 21] each (see `CAMERA_POSE`), as float32 [B, dim], under autocast too.

        Args:
            keep: bool [B]: False = zeros, as if the data had no poses; None = no mask. Our reading: False as soon as
                one of both poses is masked.
        """
        places, directions = self._places_and_directions(source, target)
        both = torch.stack([polar(places, extent=self.extent), polar(directions, extent=1)], 2)
        vector = sinusoidal(both.flatten(1), dim=self.dim, scale=self.scale)
        return vector if keep is None else vector.masked_fill(~keep[:, None], 0)

    def _places_and_directions(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return float32 [B, N, 3] each: of both cameras in the world, or of the target alone in the source's frame."""
        (rotation, origin, _), (_, place, _) = _parts(source), _parts(target)
        direction = viewing_directions(target)
        if self.form == "absolute":
            return torch.stack([origin, place], 1), torch.stack([viewing_directions(source), direction], 1)
        right, down, forward = rotation.unbind(2)
        axes = torch.stack([forward, -right, -down], 1)
        return _turned(axes, place - origin)[:, None], _turned(axes, direction)[:, None]


def _parts(cameras: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return rotation [B, 3, 3] (camera to world), position [B, 3] and intrinsics [B, 3, 3], float32."""
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
    """Return the number of sines (and of cosines) per coordinate in an encoding of width `dim`."""
    if dim < 2 * count:
        raise ValueError(f"dim: got {dim} for {count} coordinates; allowed: >= {2 * count}")
    return dim // count // 2


def _centres(count: int, device: torch.device) -> Tensor:
    """Return the centres of `count` equal cells of [0, 1]: float32 [count]."""
    return (torch.arange(count, device=device, dtype=torch.float32) + 0.5) / count


def _turned(matrix: Tensor, vector: Tensor) -> Tensor:
    """Multiply [B, 3, 3] by [B, 3]."""
    return (matrix * vector[:, None]).sum(-1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Reduce [..., 3] and [..., 3] to [..., 1]."""
    return (a * b).sum(-1, keepdim=True)


def _length(a: Tensor) -> Tensor:
    """Reduce [..., 3] to [..., 1]."""
    return torch.linalg.vector_norm(a, dim=-1, keepdim=True)
