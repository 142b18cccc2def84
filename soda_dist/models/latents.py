"""Latent space tools: interpolation, directions, traversal and sections (sections 4.3.1 and E.3).

Latents are float [.., D]. `section_of` is int64 [D]: the section of each element of z, counted from 0. Other arguments
raise ValueError.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Interpolation = Literal["linear", "spherical"]


class Directions(NamedTuple):
    """Principal directions of latents, largest variance first; float32."""

    mean: Tensor
    """[D]."""
    directions: Tensor
    """[count, D]: unit rows, zero outside the chosen columns; the entry of largest magnitude is positive."""
    sigmas: Tensor
    """[count]: standard deviation of the latents along each direction (n - 1 in the denominator)."""
    explained: Tensor
    """[count]: share of the variance of the chosen columns; zero if they do not vary."""


def interpolate(a: Tensor, b: Tensor, weights: Tensor, *, method: Interpolation) -> Tensor:
    """Interpolate between latents a and b (E.3): [n, .., D] of their dtype, a at weight 0 and b at 1.

    The paper's method is `linear`. `spherical` turns the direction along the great circle at constant speed and changes
    the length linearly, which unlike the geometric mean stays finite at a zero latent. A zero latent takes the other's
    direction; parallel latents stay on their line. Opposite ones have no single great circle: the one towards the axis
    on which a is smallest is taken, an arbitrary but finite and repeatable choice.

    Args:
        a, b: [.., D] float, of equal shape and dtype.
        weights: [n] float in [0, 1].

    Raises:
        ValueError: other shapes, dtypes, weights or methods.
    """
    if a.shape != b.shape or a.dtype != b.dtype or not a.is_floating_point() or a.ndim == 0:
        got = f"{a.dtype} {list(a.shape)} and {b.dtype} {list(b.shape)}"
        raise ValueError(f"a, b: got {got}; allowed: float [.., D], of one shape and dtype")
    if weights.ndim != 1 or not bool(((weights >= 0) & (weights <= 1)).all()):
        raise ValueError(f"weights: got {weights.tolist()}; allowed: [n] in [0, 1]")
    w = weights.to(a).view(-1, *[1] * a.ndim)
    match method:
        case "linear":
            return torch.lerp(a, b, w)
        case "spherical":
            return _spherical(a.double(), b.double(), w.double()).to(a.dtype)
        case _:
            raise ValueError(f"method: got {method}; allowed: linear, spherical")


def _spherical(a: Tensor, b: Tensor, w: Tensor) -> Tensor:
    a_length, b_length = (x.norm(dim=-1, keepdim=True) for x in (a, b))
    u, v = (x / length.where(length > 0, 1) for x, length in ((a, a_length), (b, b_length)))
    u, v = torch.where(a_length > 0, u, v), torch.where(b_length > 0, v, u)
    # The arccosine of the dot product would lose half the digits near 0 and near pi.
    angle = 2 * torch.atan2((u - v).norm(dim=-1, keepdim=True), (u + v).norm(dim=-1, keepdim=True))
    axis = torch.zeros_like(u).scatter_(-1, u.abs().argmin(-1, keepdim=True), 1)
    across = torch.where(math.pi - angle > 1e-8, v, axis)
    across = across - (across * u).sum(-1, keepdim=True) * u
    across = across / across.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(u.dtype).tiny)
    direction = torch.cos(w * angle) * u + torch.sin(w * angle) * across
    return torch.lerp(a_length, b_length, w) * direction


def principal_directions(latents: Tensor, *, columns: Tensor | None, count: int) -> Directions:
    """Find the directions of largest variance (E.3, PCA), over all of z or some of its sections.

    Computed in float64, from the covariance if there are more latents than columns, else from the latents.

    Args:
        latents: [n, D] float, finite; the paper takes 1,000 to 10,000.
        columns: int64 [c], all different, as from `section_columns`; None = all of z.
        count: 1..min(n - 1, c); n latents vary in at most n - 1 directions.

    Raises:
        ValueError: other arguments.
    """
    if latents.ndim != 2 or not latents.is_floating_point() or not bool(latents.isfinite().all()):
        raise ValueError(f"latents: got {latents.dtype} {list(latents.shape)}; allowed: float [n, D], finite")
    n, dim = latents.shape
    columns = torch.arange(dim, device=latents.device) if columns is None else columns.to(latents.device)
    if columns.ndim != 1 or not _within(columns, dim) or len(columns.unique()) != len(columns):
        raise ValueError(f"columns: got {columns.tolist()}; allowed: int64 [c], all different, in 0..{dim - 1}")
    most = min(n - 1, len(columns))
    if not 1 <= count <= most:
        raise ValueError(f"count: got {count}; allowed: 1..{most}, for {n} latents and {len(columns)} columns")
    mean = latents.double().mean(0)
    rows, variances = _principal(latents[:, columns].double() - mean[columns])
    sign = rows.gather(1, rows.abs().argmax(1, keepdim=True)).sign()
    directions = torch.zeros(count, dim, dtype=torch.float64, device=latents.device)
    directions[:, columns] = (rows * sign)[:count]
    total = variances.sum()
    explained = variances[:count] / total.where(total > 0, 1)
    return Directions(mean.float(), directions.float(), variances[:count].sqrt().float(), explained.float())


def _principal(centred: Tensor) -> tuple[Tensor, Tensor]:
    """Return unit rows and the variances along them, descending, of float64 [n, c]."""
    n, c = centred.shape
    if c < n:
        values, vectors = torch.linalg.eigh(centred.T @ centred / (n - 1))
        return vectors.flip(1).T, values.flip(0).clamp(min=0)
    _, singular, rows = torch.linalg.svd(centred, full_matrices=False)
    return rows, singular.square() / (n - 1)


def traverse(z: Tensor, direction: Tensor, sigma: float, ks: Sequence[float]) -> Tensor:
    """Compute z + k sigma v for each k (E.3, PCA): [len(ks), B, D] of z's dtype.

    Args:
        z, direction: [B, D] and [D] float.
        sigma: standard deviation along `direction`, the unit of `ks`.

    Raises:
        ValueError: shapes that do not fit.
    """
    if z.ndim != 2 or direction.shape != z.shape[1:]:
        raise ValueError(f"direction: got {list(direction.shape)} for z {list(z.shape)}; allowed: [D] for [B, D]")
    steps = torch.tensor(ks, dtype=z.dtype, device=z.device) * sigma
    return z + steps[:, None, None] * direction.to(z)


def attribute_direction(weights: Tensor, index: int, *, std: Tensor) -> Tensor:
    """Return an attribute's direction, the normalised row of the probe's weight matrix (E.3): unit float32 [D].

    Our reading: the probe sees z divided by `std`, and its row is a direction in that space. A step along it moves z by
    row * std, which is returned: per standard deviation moved, it raises the logit fastest. row / std would raise it
    fastest per unit length of z, but would lie almost wholly in elements that hardly vary; one that never varies keeps
    its initial weight.

    Softmax ignores what its rows have in common; if that is not small, subtract the rows' mean first.

    Args:
        weights: [classes, D] float; row `index` must not be zero wherever z varies.
        std: [D] float, >= 0: the root of the probe's variance.

    Raises:
        ValueError: other arguments, or a row that is zero wherever z varies.
    """
    if weights.ndim != 2 or std.shape != weights.shape[1:]:
        got = f"{list(weights.shape)} with std {list(std.shape)}"
        raise ValueError(f"weights: got {got}; allowed: [classes, D] with [D]")
    if not 0 <= index < len(weights):
        raise ValueError(f"index: got {index}; allowed: 0..{len(weights) - 1}")
    if not bool((std >= 0).all()):
        raise ValueError(f"std: got {float(std.min())}; allowed: >= 0")
    direction = weights[index].double() * std.double()
    length = direction.norm()
    if not (length > 0 and length.isfinite()):
        raise ValueError(f"weights: got row {index} of length {float(length)} where z varies; allowed: above 0, finite")
    return (direction / length).float()


def section_columns(section_of: Tensor, sections: Sequence[int]) -> Tensor:
    """Return the elements of z that belong to these sections: int64, ascending.

    Raises:
        ValueError: a section that does not exist.
    """
    count = _count(section_of)
    for section in sections:
        if not 0 <= section < count:
            raise ValueError(f"sections: got {section}; allowed: 0..{count - 1}")
    chosen = torch.tensor(list(sections), dtype=torch.int64, device=section_of.device)
    return torch.isin(section_of, chosen).nonzero().flatten()


def mix_sections(latents: Tensor, choice: Tensor, section_of: Tensor) -> Tensor:
    """Mix styles (section 3.2.1): take each section from one of K latents, bit for bit: [B, D].

    Args:
        latents: [K, B, D].
        choice: int64 [sections] in 0..K-1: the latent that gives the section, to all B.

    Raises:
        ValueError: other arguments.
    """
    count = _count(section_of)
    if latents.ndim != 3 or latents.shape[2] != len(section_of):
        raise ValueError(f"latents: got {list(latents.shape)}; allowed: [K, B, {len(section_of)}]")
    if choice.shape != (count,) or not _within(choice, len(latents)):
        raise ValueError(f"choice: got {choice.tolist()}; allowed: int64 [{count}] in 0..{len(latents) - 1}")
    source = choice.to(latents.device)[section_of.to(latents.device)]
    return latents.gather(0, source.expand(1, *latents.shape[1:]))[0]


def resample_sections(
    z: Tensor, pool: Tensor, sections: Sequence[int], section_of: Tensor, generator: torch.Generator
) -> Tensor:
    """Replace sections of z by those of random rows of `pool` (section 4.3.1): [B, D], the others bit for bit z's.

    The paper masks those sections, for the denoiser to fill in; this gives them values of real images. Our reading:
    each of the B latents gets one row, drawn uniformly with replacement, for all chosen sections, which thus stay
    consistent. Call once per section to draw a row for each.

    Args:
        z: [B, D].
        pool: [n, D], n >= 1, of z's dtype.
        generator: B rows are drawn from it, on its device.

    Raises:
        ValueError: other arguments.
    """
    dim = len(section_of)
    if z.ndim != 2 or z.shape[1] != dim:
        raise ValueError(f"z: got {list(z.shape)}; allowed: [B, {dim}]")
    if pool.ndim != 2 or pool.shape[1] != dim or len(pool) == 0 or pool.dtype != z.dtype:
        raise ValueError(f"pool: got {pool.dtype} {list(pool.shape)}; allowed: {z.dtype} [n, {dim}], n >= 1")
    columns = section_columns(section_of, sections).to(z.device)
    rows = torch.randint(len(pool), (len(z),), generator=generator, device=generator.device)
    mixed = z.clone()
    mixed[:, columns] = pool[rows.to(pool.device)].to(z.device)[:, columns]
    return mixed


def _count(section_of: Tensor) -> int:
    """Number of sections."""
    if section_of.ndim != 1 or len(section_of) == 0 or not _within(section_of, len(section_of)):
        got = f"{section_of.dtype} {list(section_of.shape)}"
        raise ValueError(f"section_of: got {got}; allowed: int64 [D], sections counted from 0")
    return int(section_of.max()) + 1


def _within(index: Tensor, size: int) -> bool:
    return index.dtype == torch.int64 and bool(((index >= 0) & (index < size)).all())
