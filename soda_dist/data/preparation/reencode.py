"""A source whose images are encoded anew: smaller files that decode faster, at a cost in quality that results state.

Decoding takes most of a view pair's time, and with published photographs most of that is entropy decoding, which grows
with a file's bytes. FFCV's recipe is 512 pixels and quality 90 (Leclerc et al. 2023).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import pyarrow as pa
import simplejpeg

from soda_dist.data.shards import Reencoding
from soda_dist.data.source import Contents, Options, Part, Row, Source, check_image
from soda_dist.data.views.decode import Image, decode, explain_unreadable, read_header

QUALITY = 90
SHRINKS = (8, 4, 2, 1)
SPARE = 2
"""A JPEG is decoded at a fraction of its size only while it stays so many times larger than wanted: what the average
over these pixels is then made of, is as good as from all of them."""


def reencoding(options: Options) -> Reencoding | None:
    """What the options ask for; none if they want images as published."""
    if options.max_side is None and options.quality is None:
        return None
    return Reencoding(max_side=options.max_side, quality=options.quality or QUALITY)


@dataclass(frozen=True)
class Reencoded:
    """`source` with every image as a JPEG of `settings`; intrinsics follow the new size. See `contract.Source`."""

    source: Source
    settings: Reencoding

    @property
    def contents(self) -> Contents:
        return self.source.contents

    def parts(self) -> Sequence[Part]:
        return self.source.parts()

    def index(self, part: Part) -> pa.Table:
        return self.source.index(part)

    def rows(self, index: pa.Table) -> Iterator[Row]:
        return (reencode(row, self.settings) for row in self.source.rows(index))


def reencode(row: Row, settings: Reencoding) -> Row:
    """The row with its image encoded anew, or with a problem where it cannot be decoded.

    Pixels are those of `data.decode`. An image that is too large is averaged down, never enlarged, with its aspect kept
    to a pixel; intrinsics, in pixels, are scaled along.
    """
    if row.problem or check_image(row.image):
        return row  # rejected for this very reason by whoever takes it
    header = read_header(row.image)
    if header is None:
        return row._replace(problem=explain_unreadable(row.image))
    size = _fitted(header.height, header.width, settings.max_side)
    room = min(header.height // size[0], header.width // size[1]) // SPARE
    shrink = next((s for s in SHRINKS if s <= room), 1)
    image = decode(row.image, header, shrink)
    if image is None:
        return row._replace(problem=explain_unreadable(row.image))
    columns = dict(row.columns)
    if columns.get("intrinsics") is not None:
        scales = np.array([size[1] / header.width, size[0] / header.height, 1.0], np.float32)
        columns["intrinsics"] = (np.asarray(columns["intrinsics"], np.float32).reshape(3, 3) * scales[:, None]).ravel()
    return row._replace(image=_encoded(image, size, settings.quality), columns=columns)


def _fitted(height: int, width: int, max_side: int | None) -> tuple[int, int]:
    longer = max(height, width)
    if max_side is None or longer <= max_side:
        return height, width
    return max(1, round(height * max_side / longer)), max(1, round(width * max_side / longer))


def _encoded(image: Image, size: tuple[int, int], quality: int) -> bytes:
    if image.shape[:2] != size:
        image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
    image = np.ascontiguousarray(image)
    return simplejpeg.encode_jpeg(image, quality=quality, colorspace="RGB", colorsubsampling="420")
