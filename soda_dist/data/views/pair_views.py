"""From image bytes to the views of each pair: a pure function of (seed, epoch, key).

Bit-identical for any batch, process and number of cores, given the kind of CPU and the version of OpenCV. Sources go to
the encoder, the target to the denoiser (section 3.2). Each view is drawn independently (section D.3), except under
`data.views=same`, where source and target share their draws.
"""

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from soda_dist.config.sections import Data
from soda_dist.data.views.addressed import Ints
from soda_dist.data.views.crops import Crops, plan_crops, resize_into, square_boxes
from soda_dist.data.views.decode import Header, Image, decode, read_header
from soda_dist.data.views.poses import Cameras, Kind, poses, read_cameras
from soda_dist.data.views.randaugment import NO_LAYER, Layer, distort, encode_layers, plan_layers

SPARE = 2
"""Scaled JPEG decoding keeps at least this multiple of a view's side; with 1 detail suffers (docs/performance.md)."""
MAX_ASPECT = 4
"""Maximum aspect of the image before a centre crop, which bounds the resized image of a narrow strip."""


class ViewPairs(NamedTuple):
    """Views of n pairs with up to S sources each."""

    source: NDArray[np.uint8]
    """uint8 [n, S, s, s, 3]; zeros in empty slots and where not ok."""
    target: NDArray[np.uint8]
    """uint8 [n, t, t, 3]; zeros where not ok."""
    source_pose: NDArray[np.float32]
    """float32 [n, S, P], from `poses`; zeros in empty slots and where not ok."""
    target_pose: NDArray[np.float32]
    """float32 [n, P]; zeros where not ok."""
    source_layers: NDArray[np.float32]
    """float32 [n, S, L, 2], from `randaugment.encode_layers`: those for the training device; L = 0 if none."""
    target_layers: NDArray[np.float32]
    """float32 [n, L, 2]."""
    unread: Ints
    """int64 [n]: place of an unreadable image of the pair; -1 = none."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return all fields except `unread`."""
        fields = self._asdict()
        del fields["unread"]
        return fields

    @property
    def ok(self) -> NDArray[np.bool_]:
        """bool [n]: whether every image of the pair could be read."""
        return self.unread < 0


class _Plan(NamedTuple):
    """Augmentation of one view of each pair."""

    crops: Crops
    layers: list[list[Layer]]


def view_pairs(
    images: list[bytes], shown: Ints, keys: Ints, epochs: Ints, *, seed: int, data: Data, stored: Cameras | None = None
) -> ViewPairs:
    """Make the views of each pair.

    Args:
        images: bytes of m images, as published.
        shown: int64 [n, S + 1], place in `images` of each source and, last, of the target; -1 = empty slot.
        keys: int64 [n], key of the pair's own row.
        epochs: int64 [n], epoch in which the row is seen.
        seed: the run's seed.
        stored: cameras of the m images, for `data.pose=cameras`.
    """
    count, sources = len(shown), shown.shape[1] - 1
    headers = [read_header(image) for image in images]
    sizes = _sizes(headers)[shown]
    plans = [_plan(slot, seed, epochs, keys, sizes[:, slot], data) for slot in range(sources + 1)]
    boxes = np.stack([plan.crops.boxes for plan in plans], 1)
    shrinks = _choose_shrinks(headers, shown, boxes, [data.source_size] * sources + [data.target_size])
    boxes = _shrink_boxes(boxes, shrinks)
    out = ViewPairs(
        np.zeros((count, sources, data.source_size, data.source_size, 3), np.uint8),
        np.zeros((count, data.target_size, data.target_size, 3), np.uint8),
        *_poses(data.pose, boxes * shrinks[..., None], plans, sizes, shown, stored),
        *_device_layers(plans, shown, data),
        np.full(count, -1),
    )
    views = [*out.source.swapaxes(0, 1), out.target]
    on_worker = data.augmentation.randaugment_on == "worker"
    crops = [(boxes[:, slot].tolist(), plan.crops.flipped.tolist(), plan.layers) for slot, plan in enumerate(plans)]
    for row, (places, scales) in enumerate(zip(shown.tolist(), shrinks.tolist(), strict=True)):
        pixels = _decode_pair(images, headers, places, scales)
        if isinstance(pixels, int):
            out.unread[row], out.source_pose[row], out.target_pose[row] = pixels, 0, 0
            out.source_layers[row], out.target_layers[row] = NO_LAYER, NO_LAYER
            continue
        for place, view, (box, flipped, layers) in zip(places, views, crops, strict=True):
            if place >= 0:
                resize_into(_crop(pixels[place], box[row]), view[row], flipped[row])
                if layers[row] and on_worker:
                    view[row] = distort(view[row], layers[row])
    return out


def _plan(slot: int, seed: int, epochs: Ints, keys: Ints, sizes: Ints, data: Data) -> _Plan:
    """Draw the augmentation of one slot's views; the last slot is the target's."""
    role = "target" if slot == data.sources[1] else "source"
    if data.augment not in ("both", role):
        return _Plan(Crops(square_boxes(sizes), np.zeros(len(keys), np.bool_)), [[]] * len(keys))
    # The first source has the same address for any number of sources; under views=same the target shares it.
    purpose = "views/target" if role == "target" and data.views != "same" else "views/source"
    if role == "source" and slot:
        purpose = f"{purpose}/{slot}"
    settings = data.augmentation
    return _Plan(
        plan_crops(seed, f"{purpose}/crop", epochs, keys, sizes, settings),
        plan_layers(seed, f"{purpose}/randaugment", epochs, keys, settings),
    )


def _device_layers(plans: list[_Plan], shown: Ints, data: Data) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the sources' and the target's layers that the training device computes."""
    settings = data.augmentation
    count = settings.randaugment_layers if settings.randaugment_on == "device" and settings.randaugment_rate > 0 else 0
    tables = np.stack([encode_layers(plan.layers if count else [[]] * len(shown), count) for plan in plans], 1)
    tables[shown < 0] = NO_LAYER
    return tables[:, :-1], tables[:, -1]


def _poses(
    kind: Kind, boxes: Ints, plans: list[_Plan], sizes: Ints, shown: Ints, stored: Cameras | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return poses of the sources, zeros in empty slots, and of the target."""
    flipped = np.stack([plan.crops.flipped for plan in plans], 1)
    each = None if stored is None else Cameras(stored.to_world[shown], stored.intrinsics[shown])
    found = poses(kind, boxes, flipped, sizes, each)
    found[shown < 0] = 0
    return found[:, :-1], found[:, -1]


def _decode_pair(
    images: list[bytes], headers: list[Header | None], places: list[int], shrinks: list[int]
) -> dict[int, Image] | int:
    """Decode a pair's images, by place; or return the place of an unreadable one."""
    found: dict[int, Image] = {}
    for place, shrink in zip(places, shrinks, strict=True):
        if place >= 0 and place not in found:
            header = headers[place]
            image = None if header is None else decode(images[place], header, shrink)
            if image is None:
                return place
            found[place] = image
    return found


def center_views(images: list[bytes], *, size: int, resize: float) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Make evaluation views: short side resized to size * resize, then a central size x size crop (section D.2).

    Returns:
        uint8 [n, size, size, 3], zeros for unreadable images; and bool [n], whether the image could be read.
    """
    out, ok = np.zeros((len(images), size, size, 3), np.uint8), np.zeros(len(images), np.bool_)
    for row, bytes_ in enumerate(images):
        header = read_header(bytes_)
        image = None if header is None else decode(bytes_, header, 1)
        if image is not None:
            ok[row], out[row] = True, center_view(image, size=size, resize=resize)
    return out, ok


def center_poses(table: pa.Table, *, size: int, resize: float, pose: Kind) -> NDArray[np.float32]:
    """Return poses of the `center_views` of a table's rows, float32 [n, P]; zeros for unreadable headers.

    Args:
        table: has the column `image`, and `CAMERA_COLUMNS` if `pose` is `cameras`.
    """
    headers = [read_header(image) for image in table.column("image").to_pylist()]
    stored = read_cameras(table) if pose == "cameras" else None
    found = center_poses_of(_sizes(headers), stored, size=size, resize=resize, pose=pose)
    found[[header is None for header in headers]] = 0
    return found


def center_poses_of(
    sizes: Ints, stored: Cameras | None, *, size: int, resize: float, pose: Kind
) -> NDArray[np.float32]:
    """Return poses of the `center_views` of n images, float32 [n, P].

    Args:
        sizes: int64 [n, 2], height and width of each image.
        stored: their cameras, if `pose` is `cameras`.
    """
    boxes = np.array([_center_box(height, width, size, round(size * resize)) for height, width in sizes.tolist()])
    return poses(pose, boxes.reshape(-1, 4), np.zeros(len(sizes), np.bool_), sizes, stored)


def center_view(image: Image, *, size: int, resize: float) -> Image:
    """Return the `center_views` of a decoded image: torchvision's Resize and CenterCrop, uint8 [size, size, 3]."""
    image = _crop(image, _bound_aspect(image.shape[0], image.shape[1]))
    height, width = image.shape[:2]
    scaled = np.empty((*_scaled(height, width, round(size * resize)), 3), np.uint8)
    resize_into(image, scaled, False)
    return _crop(scaled, _central_box(scaled.shape[0], scaled.shape[1], size))


def _center_box(height: int, width: int, size: int, short: int) -> list[float]:
    """Return the box that `center_view` shows: top, left, height, width, in fractional pixels."""
    top, left, height, width = _bound_aspect(height, width)
    rows, columns = _scaled(height, width, short)
    box = _central_box(rows, columns, size)
    down, across = height / rows, width / columns
    return [top + box[0] * down, left + box[1] * across, box[2] * down, box[3] * across]


def _bound_aspect(height: int, width: int) -> list[int]:
    return _central_box(height, width, MAX_ASPECT * min(height, width))


def _scaled(height: int, width: int, short: int) -> tuple[int, int]:
    least = min(height, width)
    return short * height // least, short * width // least


def _central_box(height: int, width: int, most: int) -> list[int]:
    """Return the central box of at most `most` pixels per side."""
    rows, columns = min(most, height), min(most, width)
    return [round((height - rows) / 2), round((width - columns) / 2), rows, columns]


def _sizes(headers: list[Header | None]) -> Ints:
    return np.array([(h.height, h.width) if h else (1, 1) for h in headers], np.int64).reshape(-1, 2)


def _choose_shrinks(headers: list[Header | None], shown: Ints, boxes: Ints, sides: list[int]) -> Ints:
    """Choose the divisor of each view's JPEG decoding: int64 [n, S + 1].

    The largest of 1, 2, 4, 8 at which every view of the image within the pair keeps `SPARE` times its side, so that the
    resize still averages pixels. Independent of the rest of the batch.
    """
    jpeg = np.array([header is not None and header.codec == "jpeg" for header in headers], np.bool_)[shown]
    # One pixel more, for the rounding of both edges.
    room = np.where(jpeg, boxes[..., 2:].min(-1) // (SPARE * (np.array(sides) + 1)), 1)
    together = shown[:, :, None] == shown[:, None, :]
    room = np.where(together, room[:, None, :], np.iinfo(np.int64).max).min(-1)
    return 1 + (room >= 2) + 2 * (room >= 4) + 4 * (room >= 8)


def _shrink_boxes(boxes: Ints, shrinks: Ints) -> Ints:
    """Scale boxes to the image decoded at 1 / shrink, with rounded edges."""
    start = np.rint(boxes[..., :2] / shrinks[..., None]).astype(np.int64)
    stop = np.rint((boxes[..., :2] + boxes[..., 2:]) / shrinks[..., None]).astype(np.int64)
    return np.concatenate([start, stop - start], -1)


def _crop(image: Image, box: list[int]) -> Image:
    top, left, height, width = box
    return image[top : top + height, left : left + width]
