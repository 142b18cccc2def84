"""Decoding of image bytes to RGB pixels, or None; malformed bytes raise nothing.

Pixels equal those of torchvision's default loader, `Image.open(...).convert("RGB")`: first frame, alpha dropped,
palettes and grey expanded, CMYK converted, no EXIF rotation; docs/images.md has a row for each kind of file. One
departure: 16-bit grey keeps its upper byte, where `convert` clips nearly all of it to white. simplejpeg decodes JPEG
and OpenCV 8-bit PNG (bit-equal to Pillow, and several times faster at 32 px), with Pillow as the fallback.
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
"""uint8 [h, w, 3], RGB. `Any`, since OpenCV's annotations are no narrower."""

PILLOW_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
"""Without EPS, which would run a program."""
MOST_PIXELS = 178_956_970
"""Pillow's limit against decompression bombs, applied to every codec."""
_PNG_START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
_PNG_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION


class Header(NamedTuple):
    """Size and codec from the first bytes; the rest may still be broken."""

    height: int
    width: int
    codec: Literal["jpeg", "png", "other"]


def read_header(data: bytes) -> Header | None:
    """Read size and codec without decoding; None if the format is unknown or the size not allowed."""
    header = _header(data)
    if header is None or not 0 < header.height * header.width <= MOST_PIXELS:
        return None
    return header


def explain_unreadable(data: bytes) -> str:
    """Return in a few words why bytes cannot be decoded."""
    if not data:
        return "no bytes"
    header = _header(data)
    if header is None:
        return "not an image" if data.strip(b"\0") else "zero bytes"
    if not 0 < header.height * header.width <= MOST_PIXELS:
        return f"{header.width} x {header.height} pixels, more than {MOST_PIXELS:,} or none"
    return "broken or truncated"


def decode(data: bytes, header: Header, shrink: int) -> Image | None:
    """Decode an image to RGB.

    Args:
        header: from `read_header`.
        shrink: 1, 2, 4 or 8, the divisor of the size. Saves time for JPEG, which scales in its own transform.

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
    except Exception:  # plugins raise a dozen types on bad bytes, from SyntaxError to MemoryError
        return None


def _fast(data: bytes, header: Header, size: tuple[int, int], shrink: int) -> Image | None:
    if header.codec == "jpeg":
        try:
            if shrink == 1:
                return simplejpeg.decode_jpeg(data)
            return simplejpeg.decode_jpeg(data, min_height=size[0], min_width=size[1])
        except ValueError:
            return None
    if header.codec == "png" and shrink == 1 and _is_intact_still(data):
        return cv2.imdecode(np.frombuffer(data, np.uint8), _PNG_FLAGS)
    return None


def _is_intact_still(data: bytes) -> bool:
    """Check that a PNG is not animated, and that every chunk is complete with a correct checksum.

    OpenCV would show an animation's last frame. It would trust a damaged length (allocating gigabytes for 2 kB) and
    print warnings to stderr.
    """
    start, kind = 8, b""
    while kind != b"IEND":
        stop = start + 12 + int.from_bytes(data[start : start + 4], "big")
        if stop > len(data):
            return False
        kind = data[start + 4 : start + 8]
        if kind == b"acTL":
            return False
        if zlib.crc32(data[start + 4 : stop - 4]) != int.from_bytes(data[stop - 4 : stop], "big"):
            return False
        start = stop
    return True


def _pillow(data: bytes, shrink: int) -> Image | None:
    try:
        with Pillow.open(io.BytesIO(data), formats=PILLOW_FORMATS) as opened:
            image = as_rgb(opened)
            return np.asarray(image.reduce(shrink) if shrink > 1 else image)
    except Exception:  # as in _pillow_header
        return None


def as_rgb(image: Pillow.Image) -> Pillow.Image:
    """Convert an open image to mode RGB, as `decode` converts files; raises what Pillow raises for broken data."""
    if image.mode.startswith("I;16"):
        return Pillow.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    # By RGBA, since Pillow warns of a transparency that `convert` drops from a palette.
    return (image.convert("RGBA") if image.mode == "P" else image).convert("RGB")
