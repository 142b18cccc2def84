"""Odd but valid files: each row of the table in docs/images.md, at every size asked for, against Pillow."""

import io
import re
import struct
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from soda_dist.data.source import check_image
from soda_dist.data.views.decode import decode, read_header

Pixels = NDArray[np.uint8]
HEIGHT, WIDTH = 60, 84
GRAIN = np.random.default_rng(0).normal(0, 3, (HEIGHT, WIDTH, 3))
SMOOTH = np.random.default_rng(1).integers(0, 256, (4, 5, 3), np.uint8)
SCENE: Pixels = np.clip(cv2.resize(SMOOTH, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC) + GRAIN, 0, 255).astype("u1")
RGB = Image.fromarray(SCENE)
DEEP = np.random.default_rng(2).integers(0, 65536, (HEIGHT, WIDTH, 4)).astype(np.uint16)
SCALED_JPEG, SCALED_OTHER = 2.0, 1.0
"""Most levels, of 255, between a scaled decoding and the average of Pillow's pixels: the mean for JPEG, else any."""


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def deep(channels: int) -> bytes:
    return cv2.imencode(".png", DEEP[..., 0] if channels == 1 else DEEP[..., :channels])[1].tobytes()


def with_alpha(mode: str) -> Image.Image:
    image = RGB.convert(mode)
    image.putalpha(Image.fromarray(SCENE[..., 1]))
    return image


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def animated(kind: str, **options: object) -> bytes:
    """The scene first, then frames of one colour."""
    others = [Image.new("RGB", RGB.size, colour) for colour in ("lime", "blue")]
    return encoded(RGB, kind, save_all=True, append_images=others, **options)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def interlaced() -> bytes:
    """Adam7, which Pillow does not write: each of seven passes has its own rows, without filters."""
    rows = b""
    for y, x, step_y, step_x in (
        *((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4)),
        *((2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)),
    ):
        rows += b"".join(b"\0" + row.tobytes() for row in SCENE[y::step_y, x::step_x])
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 2, 0, 0, 1)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def of_process(marker: int, bits: int = 8, *, progressive: bool = False) -> bytes:
    """A JPEG whose frame claims another process: decoders of arithmetic code read any bytes as such."""
    data, start = encoded(RGB, "JPEG", progressive=progressive), 0xC2 if progressive else 0xC0
    at = data.index(bytes([0xFF, start, 0, 17, 8]))
    return data[: at + 1] + bytes([marker, 0, 17, bits]) + data[at + 5 :]


def without_adobe(data: bytes) -> bytes:
    at = data.index(b"\xff\xee")
    return data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]


CMYK = encoded(RGB.convert("CMYK"), "JPEG")
FILES = {
    "JPEG, 4:2:0": encoded(RGB, "JPEG", subsampling="4:2:0"),
    "JPEG, 4:4:4": encoded(RGB, "JPEG", subsampling="4:4:4"),
    "JPEG, RGB": encoded(RGB, "JPEG", keep_rgb=True),
    "JPEG, grey": encoded(RGB.convert("L"), "JPEG"),
    "JPEG, progressive": encoded(RGB, "JPEG", progressive=True),
    "JPEG, arithmetic code": of_process(0xC9),
    "JPEG, progressive arithmetic code": of_process(0xCA, progressive=True),
    "JPEG, CMYK of Adobe": CMYK,
    "JPEG, CMYK without Adobe's marker": without_adobe(CMYK),
    "JPEG, EXIF orientation": encoded(RGB, "JPEG", exif=turned()),
    "MPO": animated("MPO"),
    "PNG, interlaced": interlaced(),
    "PNG, 1 bit": encoded(RGB.convert("1"), "PNG"),
    "PNG, palette": encoded(RGB.convert("P"), "PNG"),
    "PNG, palette of 16": encoded(RGB.quantize(16), "PNG", bits=4),
    "PNG, palette with transparency": encoded(RGB.convert("P"), "PNG", transparency=bytes(range(256))),
    "PNG, grey and alpha": encoded(with_alpha("LA"), "PNG"),
    "PNG, alpha": encoded(with_alpha("RGBA"), "PNG"),
    "PNG, EXIF orientation": encoded(RGB, "PNG", exif=turned()),
    "PNG, gamma": encoded(RGB, "PNG")[:33] + chunk(b"gAMA", b"\0\1\x86\xa0") + encoded(RGB, "PNG")[33:],
    "PNG, 16 bits grey and alpha": b"",
    "PNG, 16 bits colour": deep(3),
    "PNG, 16 bits colour and alpha": deep(4),
    "APNG, still in the animation": animated("PNG"),
    "APNG, still apart": animated("PNG", default_image=True),
    "WebP": encoded(RGB, "WEBP"),
    "WebP, alpha": encoded(with_alpha("RGBA"), "WEBP", lossless=True),
    "WebP, animated": animated("WEBP"),
    "BMP": encoded(RGB, "BMP"),
    "BMP, palette": encoded(RGB.convert("P"), "BMP"),
    "GIF": encoded(RGB.convert("P"), "GIF"),
    "GIF, transparency": encoded(RGB.convert("P"), "GIF", transparency=0),
    "GIF, animated": animated("GIF"),
    "TIFF": encoded(RGB, "TIFF"),
    "TIFF, compressed": encoded(RGB, "TIFF", compression="tiff_lzw"),
    "TIFF, several pages": animated("TIFF"),
    "TIFF, grey": encoded(RGB.convert("L"), "TIFF"),
    "TIFF, CMYK": encoded(RGB.convert("CMYK"), "TIFF"),
    "TIFF, alpha": encoded(with_alpha("RGBA"), "TIFF"),
}
"""The rows of docs/images.md."""
ONLY_CONVERTED = ("BMP", "GIF", "TIFF")


def deep_with_alpha() -> bytes:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in DEEP[..., :2])
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 4, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


FILES["PNG, 16 bits grey and alpha"] = deep_with_alpha()


def shown(data: bytes, shrink: int) -> Pixels:
    header = read_header(data)
    assert header is not None
    image = decode(data, header, shrink)
    assert image is not None
    return image


def averaged(pixels: Pixels, shrink: int) -> NDArray[np.float64]:
    height, width = pixels.shape[0] // shrink, pixels.shape[1] // shrink
    return pixels.reshape(height, shrink, width, shrink, 3).mean((1, 3))


@pytest.mark.parametrize("name", FILES)
def test_every_size_shows_the_same_image(name: str) -> None:
    data = FILES[name]
    converted = name.startswith(ONLY_CONVERTED)
    assert check_image(data, convert=converted) is None
    if converted:
        assert check_image(data) == f"format {name[:4].rstrip(',')}, which an import with --max-side N re-encodes"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    whole = shown(data, 1)
    assert whole.shape == expected.shape == (HEIGHT, WIDTH, 3)
    scaled_by_codec = name.startswith(("JPEG", "MPO"))
    assert np.abs(whole.astype(int) - expected).max() <= (2 if scaled_by_codec else 0)
    for shrink in (2, 4):
        difference = np.abs(shown(data, shrink) - averaged(expected, shrink))
        assert (difference.mean() if scaled_by_codec else difference.max()) <= (
            SCALED_JPEG if scaled_by_codec else SCALED_OTHER
        )


@pytest.mark.parametrize("name", [n for n in FILES if n.startswith(("JPEG", "MPO")) and not re.search("arith|CMYK", n)])
def test_a_scaled_jpeg_is_pillows_draft(name: str) -> None:
    for shrink in (2, 4, 8):
        image = Image.open(io.BytesIO(FILES[name]))
        image.draft("RGB", (WIDTH // shrink, HEIGHT // shrink))
        assert np.abs(shown(FILES[name], shrink).astype(int) - np.asarray(image.convert("RGB"))).max() <= 2


@pytest.mark.parametrize(
    "name",
    [
        "APNG, still apart",
        "APNG, still in the animation",
        "WebP, animated",
        "MPO",
        "GIF, animated",
        "TIFF, several pages",
    ],
)
def test_the_first_frame_is_shown(name: str) -> None:
    for shrink in (1, 2, 4):
        assert np.abs(shown(FILES[name], shrink) - averaged(SCENE, shrink)).mean() < 12


def test_the_upper_byte_of_16_bits_is_shown_at_every_size() -> None:
    expected = np.repeat((DEEP[..., :1] >> 8).astype(np.uint8), 3, 2)
    for shrink in (1, 2, 4):
        assert np.abs(shown(deep(1), shrink) - averaged(expected, shrink)).max() <= SCALED_OTHER
    assert check_image(deep(1)) is None


REJECTED = {
    "lossless or hierarchical": (of_process(0xC3), "a lossless or hierarchical JPEG"),
    "hierarchical": (of_process(0xC5), "a lossless or hierarchical JPEG"),
    "12 bits": (of_process(0xC1, bits=12), "a JPEG of 12 bits a channel"),
    "PPM": (encoded(RGB, "PPM"), "format PPM, not JPEG, PNG or WebP"),
    "TIFF of 32 bits": (encoded(RGB.convert("F"), "TIFF"), "an image of 32 bits a channel"),
    "TIFF of integers": (encoded(RGB.convert("I"), "TIFF"), "an image of 32 bits a channel"),
}


@pytest.mark.parametrize("name", REJECTED)
def test_what_no_decoder_here_shows_is_rejected_at_import(name: str) -> None:
    data, reason = REJECTED[name]
    assert check_image(data) == check_image(data, convert=True) == reason


def test_a_tiff_is_turned_as_pillow_turns_it() -> None:
    assert np.array_equal(shown(encoded(RGB, "TIFF", exif=turned()), 1), np.rot90(SCENE, -1))


@pytest.mark.parametrize("bits", [8, 16])
def test_the_upper_byte_of_a_tiff_is_shown(bits: int) -> None:
    grey = DEEP[..., 0] if bits == 16 else (DEEP[..., 0] >> 8).astype(np.uint8)
    expected = np.repeat((DEEP[..., :1] >> 8).astype(np.uint8), 3, 2)
    assert np.array_equal(shown(encoded(Image.fromarray(grey), "TIFF"), 1), expected)


@pytest.mark.parametrize("stray", [chunk(b"fdAT", bytes(12)), None])
def test_an_animation_that_contradicts_itself_is_rejected_at_import(stray: bytes | None) -> None:
    """A frame that was not announced, or no picture at all: Pillow opens the file, and fails at its pixels."""
    still = encoded(RGB, "PNG")
    at = still.index(b"IDAT") - 4
    head = still[:at] + chunk(b"acTL", struct.pack(">II", 1, 0))
    data = head + still[-12:] if stray is None else head + still[at:-12] + stray + still[-12:]
    assert check_image(still) is None
    assert check_image(data) == "a broken animation"


def test_a_size_that_no_decoder_here_takes_is_rejected_at_import() -> None:
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    reason = check_image(data)
    assert reason is not None and reason.startswith(("20000 x 20000 pixels", "a broken header (Image size (400000000"))


def test_a_palette_with_transparency_is_shown_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shown(FILES["PNG, palette with transparency"], 2)


def test_the_table_in_the_docs_has_a_row_for_each_file() -> None:
    text = (Path(__file__).parents[3] / "docs/images.md").read_text()
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]
    kinds = {name.replace("4:2:0", "any sampling").replace("4:4:4", "any sampling") for name in FILES}
    assert kinds <= set(rows), sorted(kinds - set(rows))
