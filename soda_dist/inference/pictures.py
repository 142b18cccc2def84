"""Images as a user has them, and their central views: the pixels that evaluation gives to the networks."""

from collections.abc import Iterable, Iterator, Sequence
from os import PathLike, fspath
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Pillow

from soda_dist.config.schema import RunConfig
from soda_dist.data.storage.folder import locate
from soda_dist.data.views.decode import as_rgb, decode, explain_unreadable, read_header
from soda_dist.data.views.pair_views import center_poses_of, center_view
from soda_dist.data.views.poses import Cameras
from soda_dist.errors import UserError
from soda_dist.evaluation.views import EvaluationViews

Picture: TypeAlias = str | PathLike[str] | Pillow.Image | NDArray[Any] | torch.Tensor
"""One image: a path or URI, a PIL image, a uint8 array [h, w, 3], or a tensor [3, h, w] (see `pixels_of`)."""
Pictures: TypeAlias = Picture | Iterable[Picture]
"""One or many; arrays and tensors may have a leading dimension n. Any sizes."""
ALLOWED = (
    "paths, URIs, PIL images, uint8 arrays [h, w, 3] or [n, h, w, 3], "
    "tensors [3, h, w] or [n, 3, h, w] of uint8 or of floats in [0, 1]"
)


def listed(images: Pictures) -> Sequence[Picture]:
    """Return the single images, unread.

    Raises:
        UserError: no image, or what is none.
    """
    found: Sequence[Picture]
    if isinstance(images, str | PathLike | Pillow.Image):
        found = [images]
    elif isinstance(images, np.ndarray | torch.Tensor):
        found = list(images) if images.ndim == 4 else [images]
    elif isinstance(images, Iterable):
        found = list(images)
    else:
        raise _refused(type(images).__name__)
    if not found:
        raise _refused("none")
    return found


def pixels_of(image: Picture) -> NDArray[np.uint8]:
    """Return an image's pixels, uint8 [h, w, 3], as `data.views.decode` gives them.

    Tensors may also be uint8 [h, w, 3]; of a shape that reads either way, the first dimension counts as the channels.

    Raises:
        UserError: a file that is missing or unreadable, or another shape, type or range.
    """
    match image:
        case str() | PathLike():
            return _read(fspath(image))
        case Pillow.Image():
            try:
                return np.asarray(as_rgb(image))
            except (OSError, ValueError, SyntaxError) as error:  # of a file that Pillow reads only now
                raise _refused(f"a PIL image that cannot be read ({error})") from None
        case torch.Tensor():
            return _of_array(_planes_last(image.detach().cpu()).numpy())
        case np.ndarray():
            return _of_array(image)
    raise _refused(type(image).__name__)


def _read(uri: str) -> NDArray[np.uint8]:
    folder, name = locate(uri)
    try:
        data = folder.read(name)
    except FileNotFoundError:
        raise UserError("images", uri, "an existing file", "check the path") from None
    header = read_header(data)
    image = None if header is None else decode(data, header, 1)
    if image is None:
        raise UserError("images", f"{uri} ({explain_unreadable(data)})", "a readable image", "leave it out")
    return image


def _planes_last(image: torch.Tensor) -> torch.Tensor:
    """Bring a tensor to uint8 [h, w, 3]; other shapes stay as they are."""
    if image.is_floating_point():
        if image.numel() and not bool(((image >= 0) & (image <= 1)).all()):
            raise _refused(f"a float tensor with values in {float(image.min()):g}..{float(image.max()):g}")
        image = (image.float() * 255).round().to(torch.uint8) if image.shape[:1] == (3,) else image
    return image.permute(1, 2, 0) if image.ndim == 3 and len(image) == 3 else image


def _of_array(image: NDArray[Any]) -> NDArray[np.uint8]:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise _refused(f"{image.dtype} {list(image.shape)}")
    return np.ascontiguousarray(image)


def _refused(got: str) -> UserError:
    return UserError("images", got, ALLOWED, "convert them")


def batches(images: Pictures, config: RunConfig, cameras: Cameras | None, *, target: bool) -> Iterator[EvaluationViews]:
    """Yield the central views of `images`, `evaluation.batch` at a time, as `evaluation.views.central_views`.

    Args:
        cameras: of the images, for models of `data.pose=cameras`; intrinsics in pixels of each image.
        target: whether the denoiser's views are wanted; else they have no rows.

    Raises:
        UserError: as `listed` and `pixels_of`, or cameras that do not fit.
    """
    found, data, size = listed(images), config.data, config.evaluation.batch
    stored = None
    if data.pose == "cameras":
        stored = checked_cameras(cameras, len(found), "cameras")
    elif cameras is not None:
        raise UserError("cameras", f"cameras for a model of data.pose={data.pose}", "none", "leave them out")
    for at in range(0, len(found), size):
        some = None if stored is None else Cameras(*(part[at : at + size] for part in stored))
        yield _views(found[at : at + size], config, some, target)


def _views(found: Sequence[Picture], config: RunConfig, stored: Cameras | None, target: bool) -> EvaluationViews:
    data, r = config.data, config.data.target_size
    source, drawn, sizes = [], [], []
    for image in map(pixels_of, found):
        source.append(center_view(image, size=data.source_size, resize=data.eval_resize))
        if target:
            drawn.append(center_view(image, size=r, resize=data.eval_resize))
        sizes.append(image.shape[:2])
    pose = None
    if data.pose != "none":
        shape = np.array(sizes, np.int64)
        pose = center_poses_of(shape, stored, size=data.source_size, resize=data.eval_resize, pose=data.pose)
    targets = np.stack(drawn) if target else np.zeros((0, r, r, 3), np.uint8)
    return EvaluationViews(np.stack(source), targets, pose, np.ones(len(found), np.bool_))


def checked_cameras(cameras: Cameras | None, count: int | None, field: str) -> Cameras:
    """Return cameras as float64 arrays; `count`: how many are wanted, None = one or more.

    Raises:
        UserError: none, another number, shapes, or values that are not finite.
    """
    allowed = f"Cameras(to_world [{count or 'n'}, 4, 4], intrinsics [{count or 'n'}, 3, 3]), finite"
    if cameras is None:
        raise UserError(field, "nothing for a model of data.pose=cameras", allowed, "pass the images' cameras")
    world, intrinsics = (np.asarray(part, np.float64) for part in Cameras(*cameras))
    wanted = len(world) if count is None and world.ndim == 3 else count
    fits = bool(wanted) and (world.shape, intrinsics.shape) == ((wanted, 4, 4), (wanted, 3, 3))
    if not fits or not (np.isfinite(world).all() and np.isfinite(intrinsics).all()):
        got = f"{list(world.shape)} and {list(intrinsics.shape)}" if not fits else "values that are not finite"
        raise UserError(field, got, allowed, "give each view its camera")
    return Cameras(world, intrinsics)
