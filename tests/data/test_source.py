"""The cheap check of image bytes: whole files pass, every cut is found, without decoding."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from soda_dist.data.source import check_image
from soda_dist.data.sources import SOURCES

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)


def encoded(kind: str, **options: object) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(PIXELS).save(sink, kind, **options)
    return sink.getvalue()


def with_thumbnail() -> bytes:
    """A JPEG with another whole JPEG, end marker included, in an EXIF segment before its own scan."""
    thumbnail, photograph = encoded("JPEG", quality=10), encoded("JPEG")
    payload = b"Exif\0\0" + thumbnail
    return photograph[:2] + b"\xff\xe1" + (len(payload) + 2).to_bytes(2, "big") + payload + photograph[2:]


def unknown_dds() -> bytes:
    """A texture whose pixel format has no known flag: an error of Pillow's that is none of those for bad images."""
    data = encoded("DDS")
    data = data[:80] + (0xFF00).to_bytes(4, "little") + data[84:]
    with pytest.raises(NotImplementedError):
        Image.open(io.BytesIO(data))
    return data


WHOLE = {
    "baseline": encoded("JPEG"),
    "progressive": encoded("JPEG", progressive=True),
    "thumbnail": with_thumbnail(),
    "png": encoded("PNG"),
    "webp": encoded("WEBP", quality=75),
    "lossless webp": encoded("WEBP", lossless=True),
    "webp with metadata": encoded("WEBP", quality=75, exif=b"Exif\0\0" + bytes(101)),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_whole_images_pass_and_every_cut_is_found(kind: str) -> None:
    data = WHOLE[kind]
    assert check_image(data) is None
    assert check_image(data + b"\0\0 trailing") is None
    slack, step = (0, 1) if "webp" in kind else (4, 7)  # the others' last bytes are a marker and a checksum
    for stop in range(0, len(data) - slack, step):
        assert check_image(data[:stop]), f"cut at {stop} of {len(data)}"
    assert check_image(data[: len(data) * 3 // 4]) in ("a truncated image", "not an image")


def test_grey_and_other_modes_pass() -> None:
    for mode, kind in (("L", "JPEG"), ("CMYK", "JPEG"), ("L", "PNG"), ("RGBA", "PNG"), ("P", "PNG")):
        sink = io.BytesIO()
        Image.fromarray(PIXELS).convert(mode).save(sink, kind)
        assert check_image(sink.getvalue()) is None, (mode, kind)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "an empty file"),
        (b"hello, I am text", "not an image"),
        (b"\0" * 1000, "not an image"),
        (encoded("GIF"), "format GIF, which an import with --max-side N re-encodes"),
        (encoded("BMP"), "format BMP, which an import with --max-side N re-encodes"),
        (unknown_dds(), "a broken header (Unknown pixel format flags 65280)"),
    ],
)
def test_what_is_not_an_image_says_why(data: bytes, reason: str) -> None:
    assert check_image(data) == reason


def test_the_job_names_every_kind() -> None:
    text = (Path(__file__).parents[2] / "soda_dist/commands/prepare_data.py").read_text()
    named = text.partition("Kinds: ")[2].partition(";")[0].replace("\n", " ").split(", ")
    assert sorted(named) == sorted(SOURCES)
