"""Sources with re-encoded images: smaller files that decode faster, at a loss of quality that results report.

Decoding takes most of a view pair's time, mostly in entropy decoding, which grows with file size. FFCV's recipe is 512
pixels and quality 90 (Leclerc et al. 2023).
"""

from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg

from soda_dist.data.shards import Reencoding
from soda_dist.data.source import Changed, Options, Row, check_image
from soda_dist.data.views.decode import Image, decode, explain_unreadable, read_header

QUALITY = 90
SHRINKS = (8, 4, 2, 1)
SPARE = 2
"""Scaled JPEG decoding keeps at least this multiple of the final size, so that averaging loses no detail."""


def reencoding(options: Options) -> Reencoding | None:
    """Return the settings in the options, or None for images as published."""
    if options.max_side is None and options.quality is None:
        return None
    return Reencoding(max_side=options.max_side, quality=options.quality or QUALITY)


@dataclass(frozen=True)
class Reencoded(Changed):
    """`source` with all images re-encoded and intrinsics scaled to match. Implements `Source`."""

    settings: Reencoding

    def change(self, row: Row) -> Row:
        return reencode(row, self.settings)


def reencode(row: Row, settings: Reencoding) -> Row:
    """Re-encode a row's image, or set its `problem` if it cannot be decoded.

    Pixels come from `views.decode`. Larger images are averaged down to `max_side`, keeping their aspect to a pixel;
    none are enlarged. Intrinsics, in pixels, are scaled to match.
    """
    if row.problem or check_image(row.image, convert=True):
        return row  # the import rejects it for this reason
    header = read_header(row.image)
    if header is None:
        return row._replace(problem=explain_unreadable(row.image))
    size = _fit_size(header.height, header.width, settings.max_side)
    room = min(header.height // size[0], header.width // size[1]) // SPARE
    shrink = next((s for s in SHRINKS if s <= room), 1)
    image = decode(row.image, header, shrink)
    if image is None:
        return row._replace(problem=explain_unreadable(row.image))
    columns = dict(row.columns)
    if columns.get("intrinsics") is not None:
        scales = np.array([size[1] / header.width, size[0] / header.height, 1.0], np.float32)
        columns["intrinsics"] = (np.asarray(columns["intrinsics"], np.float32).reshape(3, 3) * scales[:, None]).ravel()
    return row._replace(image=_encode_jpeg(image, size, settings.quality), columns=columns)


def _fit_size(height: int, width: int, max_side: int | None) -> tuple[int, int]:
    longer = max(height, width)
    if max_side is None or longer <= max_side:
        return height, width
    return max(1, round(height * max_side / longer)), max(1, round(width * max_side / longer))


def _encode_jpeg(image: Image, size: tuple[int, int], quality: int) -> bytes:
    if image.shape[:2] != size:
        image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
    image = np.ascontiguousarray(image)
    return simplejpeg.encode_jpeg(image, quality=quality, colorspace="RGB", colorsubsampling="420")
