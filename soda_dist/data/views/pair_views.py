"""Bytes -> the views of each pair: a pure function of (seed, epoch, key), whatever else is in the batch.

Bit-identical for any batch, process and number of cores, on one kind of CPU and one version of OpenCV.
The sources go to the encoder, the target to the denoiser (section 3.2). Each view is drawn by itself (section D.3),
unless the views are one (`data.views` is `same`).
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
"""250 photographs at 64 and 128 px against Pillow's antialiased resize of the whole image, mean SSIM where a JPEG was
decoded at half its size: with 1 it is 0.976 and 0.964, with 2 it is 0.984 and 0.991, without scaled decoding 0.989 and
0.996."""
MAX_ASPECT = 4
"""Longest side over shortest of what a centre crop is cut from: a strip of a few pixels must not grow without bound."""


class ViewPairs(NamedTuple):
    """Views of n pairs with up to S sources each."""

    source: NDArray[np.uint8]
    """uint8 [n, S, s, s, 3]; zeros in empty slots and where not ok."""
    target: NDArray[np.uint8]
    """uint8 [n, t, t, 3]; zeros where not ok."""
    source_pose: NDArray[np.float32]
    """float32 [n, S, P], of `data.poses`; zeros in empty slots and where not ok."""
    target_pose: NDArray[np.float32]
    """float32 [n, P]; zeros where not ok."""
    source_layers: NDArray[np.float32]
    """float32 [n, S, L, 2], from `randaugment.encode_layers`: those for the training device; L = 0 if none."""
    target_layers: NDArray[np.float32]
    """float32 [n, L, 2]."""
    unread: Ints
    """int64 [n]: place of an image of the pair that could not be read, or -1: all could."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Its fields but the last."""
        fields = self._asdict()
        del fields["unread"]
        return fields

    @property
    def ok(self) -> NDArray[np.bool_]:
        """bool [n]: every image of the pair could be read."""
        return self.unread < 0


class _Plan(NamedTuple):
    """One view of each pair."""

    crops: Crops
    layers: list[list[Layer]]


def view_pairs(
    images: list[bytes],
    shown: Ints,
    keys: Ints,
    epochs: Ints,
    *,
    seed: int,
    data: Data,
    stored: Cameras | None = None,
) -> ViewPairs:
    """The views of each pair.

    Args:
        images: bytes as published, m of them.
        shown: int64 [n, S + 1], the place in `images` of what each source and, last, the target shows; -1: an empty
            slot.
        keys: int64 [n], the ordinal in its split of the row that the pair belongs to.
        epochs: int64 [n], the epoch that the row is seen in.
        seed: of the run.
        data: sizes, augmentation and poses.
        stored: cameras of the m images, if `data.pose` wants them.
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
    here = data.augmentation.randaugment_on == "worker"
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
                if layers[row] and here:
                    view[row] = distort(view[row], layers[row])
    return out


def _plan(slot: int, seed: int, epochs: Ints, keys: Ints, sizes: Ints, data: Data) -> _Plan:
    """What becomes of the views in one slot; the last slot, of `data.sources` and one, is the target's."""
    role = "target" if slot == data.sources[1] else "source"
    if data.augment not in ("both", role):
        return _Plan(Crops(square_boxes(sizes), np.zeros(len(keys), np.bool_)), [[]] * len(keys))
    # The first source is addressed as if it were the only one; views that are one have one address.
    purpose = "views/target" if role == "target" and data.views != "same" else "views/source"
    if role == "source" and slot:
        purpose = f"{purpose}/{slot}"
    settings = data.augmentation
    return _Plan(
        plan_crops(seed, f"{purpose}/crop", epochs, keys, sizes, settings),
        plan_layers(seed, f"{purpose}/randaugment", epochs, keys, settings),
    )


def _device_layers(plans: list[_Plan], shown: Ints, data: Data) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Layers of the sources and the target where the training device computes them."""
    settings = data.augmentation
    count = settings.randaugment_layers if settings.randaugment_on == "device" and settings.randaugment_rate > 0 else 0
    tables = np.stack([encode_layers(plan.layers if count else [[]] * len(shown), count) for plan in plans], 1)
    tables[shown < 0] = NO_LAYER
    return tables[:, :-1], tables[:, -1]


def _poses(
    kind: Kind, boxes: Ints, plans: list[_Plan], sizes: Ints, shown: Ints, stored: Cameras | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Of the sources and the target; zeros in empty slots."""
    flipped = np.stack([plan.crops.flipped for plan in plans], 1)
    each = None if stored is None else Cameras(stored.to_world[shown], stored.intrinsics[shown])
    found = poses(kind, boxes, flipped, sizes, each)
    found[shown < 0] = 0
    return found[:, :-1], found[:, -1]


def _decode_pair(
    images: list[bytes], headers: list[Header | None], places: list[int], shrinks: list[int]
) -> dict[int, Image] | int:
    """A pair's images by their places, or the place of one that cannot be read."""
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
    """For evaluation: the short side to size * resize, then the central size x size (section D.2).

    Returns:
        uint8 [n, size, size, 3], zeros where the image cannot be read, and bool [n], whether it can.
    """
    out, ok = np.zeros((len(images), size, size, 3), np.uint8), np.zeros(len(images), np.bool_)
    for row, bytes_ in enumerate(images):
        header = read_header(bytes_)
        image = None if header is None else decode(bytes_, header, 1)
        if image is not None:
            ok[row], out[row] = True, _center(image, size, round(size * resize))
    return out, ok


def center_poses(table: pa.Table, *, size: int, resize: float, pose: Kind) -> NDArray[np.float32]:
    """Poses of the `center_views` of a table's rows, float32 [n, P]; zeros where the image cannot be read.

    Args:
        table: with the column `image`, and `CAMERA_COLUMNS` if `pose` is `cameras`.
    """
    headers = [read_header(image) for image in table.column("image").to_pylist()]
    boxes = np.array(
        [_center_box(h.height, h.width, size, round(size * resize)) if h else (0, 0, 1, 1) for h in headers]
    )
    boxes, unflipped = boxes.reshape(-1, 4), np.zeros(len(headers), np.bool_)
    stored = read_cameras(table) if pose == "cameras" else None
    found = poses(pose, boxes, unflipped, _sizes(headers), stored)
    found[[header is None for header in headers]] = 0
    return found


def _center(image: Image, size: int, short: int) -> Image:
    """torchvision's Resize(short) and CenterCrop(size): [size, size, 3]."""
    image = _crop(image, _strip(image.shape[0], image.shape[1]))
    height, width = image.shape[:2]
    scaled = np.empty((*_scaled(height, width, short), 3), np.uint8)
    resize_into(image, scaled, False)
    return _crop(scaled, _central_box(scaled.shape[0], scaled.shape[1], size))


def _center_box(height: int, width: int, size: int, short: int) -> list[float]:
    """What `_center` shows of an image: top, left, height, width, in parts of its pixels."""
    top, left, height, width = _strip(height, width)
    rows, columns = _scaled(height, width, short)
    box = _central_box(rows, columns, size)
    down, across = height / rows, width / columns
    return [top + box[0] * down, left + box[1] * across, box[2] * down, box[3] * across]


def _strip(height: int, width: int) -> list[int]:
    return _central_box(height, width, MAX_ASPECT * min(height, width))


def _scaled(height: int, width: int, short: int) -> tuple[int, int]:
    least = min(height, width)
    return short * height // least, short * width // least


def _central_box(height: int, width: int, most: int) -> list[int]:
    """The central box of at most `most` pixels a side."""
    rows, columns = min(most, height), min(most, width)
    return [round((height - rows) / 2), round((width - columns) / 2), rows, columns]


def _sizes(headers: list[Header | None]) -> Ints:
    return np.array([(h.height, h.width) if h else (1, 1) for h in headers], np.int64).reshape(-1, 2)


def _choose_shrinks(headers: list[Header | None], shown: Ints, boxes: Ints, sides: list[int]) -> Ints:
    """For each view, int64 [n, S + 1], the scale that its JPEG is decoded at.

    The largest of 1, 2, 4, 8 at which every view of this image in this pair keeps `SPARE` times its side, so that the
    resize that follows still has pixels to average: decoding costs no detail, and what else is in the batch changes
    nothing.
    """
    jpeg = np.array([header is not None and header.codec == "jpeg" for header in headers], np.bool_)[shown]
    # One pixel to spare for the rounding of both edges.
    room = np.where(jpeg, boxes[..., 2:].min(-1) // (SPARE * (np.array(sides) + 1)), 1)
    together = shown[:, :, None] == shown[:, None, :]
    room = np.where(together, room[:, None, :], np.iinfo(np.int64).max).min(-1)
    return 1 + (room >= 2) + 2 * (room >= 4) + 4 * (room >= 8)


def _shrink_boxes(boxes: Ints, shrinks: Ints) -> Ints:
    """Boxes in the image that was decoded at 1 / shrink, edges rounded."""
    start = np.rint(boxes[..., :2] / shrinks[..., None]).astype(np.int64)
    stop = np.rint((boxes[..., :2] + boxes[..., 2:]) / shrinks[..., None]).astype(np.int64)
    return np.concatenate([start, stop - start], -1)


def _crop(image: Image, box: list[int]) -> Image:
    top, left, height, width = box
    return image[top : top + height, left : left + width]
