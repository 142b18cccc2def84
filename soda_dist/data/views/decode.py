"""Bytes of a published image -> RGB pixels, or None. Nothing that the bytes hold raises.

Pixels are those of torchvision's default loader, `Image.open(...).convert("RGB")`: the first frame, alpha dropped,
palettes and grey expanded, CMYK converted, no rotation by EXIF. One departure: 16-bit grey keeps its upper byte, where
`convert` clips nearly all of it to white. JPEG goes through simplejpeg and 8-bit PNG through OpenCV (bit-equal to
Pillow and faster: 8 and 8 against 65 and 33 microseconds at 32 px); what they refuse, Pillow judges.
"""

import io
import struct
import zlib
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image as Pillow

Image = NDArray[Any]
"""uint8 [h, w, 3], RGB. `Any`, since OpenCV's annotations promise no more."""

PILLOW_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
"""No format that runs a program (EPS) is tried."""
MOST_PIXELS = 178_956_970
"""Pillow's own limit against decompression bombs, held for every codec."""
_PNG_START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
_PNG_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION


class Header(NamedTuple):
    """What the first bytes say; the rest may still be broken."""

    height: int
    width: int
    codec: Literal["jpeg", "png", "other"]


def read_header(data: bytes) -> Header | None:
    """Size and codec without decoding (about a microsecond for JPEG); None if this is no image we can read."""
    header = _header(data)
    if header is None or not 0 < header.height * header.width <= MOST_PIXELS:
        return None
    return header


def explain_unreadable(data: bytes) -> str:
    """What is wrong with bytes that cannot be read: a few words."""
    if not data:
        return "no bytes"
    header = _header(data)
    if header is None:
        return "not an image" if data.strip(b"\0") else "zero bytes"
    if not 0 < header.height * header.width <= MOST_PIXELS:
        return f"{header.width} x {header.height} pixels, more than {MOST_PIXELS:,} or none"
    return "broken or truncated"


def decode(data: bytes, header: Header, shrink: int) -> Image | None:
    """The image, RGB.

    Args:
        data: the bytes as published.
        header: of `read_header`.
        shrink: 1, 2, 4 or 8: decode at this fraction of the size. JPEG does it inside its own transform, which is
            where it saves time.

    Returns:
        uint8 [ceil(height / shrink), ceil(width / shrink), 3], or None if the bytes are broken.
    """
    size = -(-header.height // shrink), -(-header.width // shrink)
    image = _fast(data, header, size, shrink)
    if image is None or image.shape[:2] != size:
        image = _pillow(data, shrink)
    return image if image is not None and image.shape[:2] == size else None


def _header(data: bytes) -> Header | None:
    if data[:2] == b"\xff\xd8":
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            return _pillow_header(data)
        return Header(height, width, "other" if colours in ("CMYK", "YCCK") else "jpeg")
    if data[:16] == _PNG_START and len(data) > 25:
        width, height, depth = struct.unpack(">IIB", data[16:25])
        return Header(height, width, "png" if depth == 8 else "other")
    return _pillow_header(data)


def _pillow_header(data: bytes) -> Header | None:
    try:
        with Pillow.open(io.BytesIO(data), formats=PILLOW_FORMATS) as opened:
            return Header(opened.height, opened.width, "other")
    except Exception:  # its plugins raise a dozen types on bad bytes, from SyntaxError to MemoryError
        return None


def _fast(data: bytes, header: Header, size: tuple[int, int], shrink: int) -> Image | None:
    if header.codec == "jpeg":
        try:
            if shrink == 1:
                return simplejpeg.decode_jpeg(data)
            return simplejpeg.decode_jpeg(data, min_height=size[0], min_width=size[1])
        except ValueError:
            return None
    if header.codec == "png" and shrink == 1 and _is_intact_png(data):
        return cv2.imdecode(np.frombuffer(data, np.uint8), _PNG_FLAGS)
    return None


def _is_intact_png(data: bytes) -> bool:
    """Whether every chunk is whole and its checksum right.

    OpenCV believes a damaged length (gigabytes for a file of 2 kB) and writes to stderr what it dislikes.
    """
    start, kind = 8, b""
    while kind != b"IEND":
        stop = start + 12 + int.from_bytes(data[start : start + 4], "big")
        if stop > len(data):
            return False
        kind = data[start + 4 : start + 8]
        if zlib.crc32(data[start + 4 : stop - 4]) != int.from_bytes(data[stop - 4 : stop], "big"):
            return False
        start = stop
    return True


def _pillow(data: bytes, shrink: int) -> Image | None:
    try:
        with Pillow.open(io.BytesIO(data), formats=PILLOW_FORMATS) as opened:
            if opened.mode.startswith("I;16"):
                image = Pillow.fromarray((np.asarray(opened).astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
            else:
                image = opened.convert("RGB")
            return np.asarray(image.reduce(shrink) if shrink > 1 else image)
    except Exception:  # as in _pillow_header
        return None
