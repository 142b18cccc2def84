"""Bytes -> the two views of each image: a pure function of (seed, epoch, key), whatever else is in the batch.

Bit-identical for any batch, process and number of cores, on one kind of CPU and one version of OpenCV.
The source goes to the encoder, the target to the denoiser (section 3.2); each view is drawn by itself (section D.3).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from soda_dist.config.schema import Data
from soda_dist.data.augment import plan_crops, resize_into
from soda_dist.data.decode import Header, Image, decode, read_header
from soda_dist.data.draws import Ints
from soda_dist.data.randaugment import distort, plan_layers

VIEWS = ("source", "target")


class ViewPairs(NamedTuple):
    """Views of n images."""

    source: NDArray[np.uint8]
    """uint8 [n, s, s, 3]; zeros where not ok."""
    target: NDArray[np.uint8]
    """uint8 [n, t, t, 3]; zeros where not ok."""
    ok: NDArray[np.bool_]
    """bool [n]: the image could be read."""


def view_pairs(images: list[bytes], keys: Ints, epochs: Ints, *, seed: int, data: Data) -> ViewPairs:
    """Two views of each image.

    Args:
        images: bytes as published.
        keys: int64 [n], the row's ordinal in its split.
        epochs: int64 [n], the epoch that the row is seen in.
        seed: of the run.
        data: sizes and augmentation.
    """
    headers = [read_header(image) for image in images]
    sizes, how = _sizes(headers), data.augmentation
    sides = data.source_size, data.target_size
    crops = [plan_crops(seed, f"views/{view}/crop", epochs, keys, sizes, how) for view in VIEWS]
    layers = [plan_layers(seed, f"views/{view}/randaugment", epochs, keys, how) for view in VIEWS]
    shrinks = _shrinks(headers, [crop.boxes for crop in crops], sides)
    boxes = [_shrunk(crop.boxes, shrinks) for crop in crops]
    flipped = [crop.flipped.tolist() for crop in crops]
    outs = [np.zeros((len(images), side, side, 3), np.uint8) for side in sides]
    ok = np.zeros(len(images), np.bool_)
    for row, shrink in enumerate(shrinks.tolist()):
        header = headers[row]
        image = None if header is None else decode(images[row], header, shrink)
        if image is None:
            continue
        ok[row] = True
        for view, out in enumerate(outs):
            resize_into(_cut(image, boxes[view][row]), out[row], flipped[view][row])
            if layers[view][row]:
                out[row] = distort(out[row], layers[view][row])
    return ViewPairs(outs[0], outs[1], ok)


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


def _center(image: Image, size: int, short: int) -> Image:
    """torchvision's Resize(short) and CenterCrop(size): [size, size, 3]."""
    if max(image.shape[:2]) > 4 * min(image.shape[:2]):  # keeps a strip of a few pixels from growing without bound
        image = _cut(image, _middle(image, 4 * min(image.shape[:2])))
    least = min(image.shape[:2])
    scaled = np.empty((*(short * side // least for side in image.shape[:2]), 3), np.uint8)
    resize_into(image, scaled, False)
    return _cut(scaled, _middle(scaled, size))


def _middle(image: Image, most: int) -> list[int]:
    """The central box of at most `most` pixels a side."""
    height, width = min(most, image.shape[0]), min(most, image.shape[1])
    return [round((image.shape[0] - height) / 2), round((image.shape[1] - width) / 2), height, width]


def _sizes(headers: list[Header | None]) -> Ints:
    return np.array([(h.height, h.width) if h else (1, 1) for h in headers], np.int64).reshape(-1, 2)


def _shrinks(headers: list[Header | None], boxes: list[Ints], sides: tuple[int, int]) -> Ints:
    """For each JPEG the largest of 1, 2, 4, 8 at which every box keeps its view's side: decoding never costs detail."""
    # One pixel to spare for the rounding of both edges.
    room = np.minimum(*(box[:, 2:].min(1) // (side + 1) for box, side in zip(boxes, sides, strict=True)))
    room[[header is None or header.codec != "jpeg" for header in headers]] = 1
    return 1 + (room >= 2) + 2 * (room >= 4) + 4 * (room >= 8)


def _shrunk(boxes: Ints, shrinks: Ints) -> list[list[int]]:
    """Boxes in the image that was decoded at 1 / shrink, edges rounded."""
    start = np.rint(boxes[:, :2] / shrinks[:, None]).astype(np.int64)
    stop = np.rint((boxes[:, :2] + boxes[:, 2:]) / shrinks[:, None]).astype(np.int64)
    return np.hstack([start, stop - start]).tolist()


def _cut(image: Image, box: list[int]) -> Image:
    top, left, height, width = box
    return image[top : top + height, left : left + width]
