import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from soda_dist.data.views.decode import Header, decode, read_header

Pixels = NDArray[np.uint8]


def scene(height: int, width: int, seed: int = 0) -> Pixels:
    """Smooth colours with some grain, as a photograph has."""
    rng = np.random.default_rng(seed)
    smooth = cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth + rng.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def reference(data: bytes) -> Pixels:
    """torchvision's default loader."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def decoded(data: bytes, shrink: int = 1) -> Pixels | None:
    header = read_header(data)
    return None if header is None else decode(data, header, shrink)


def alpha(mode: str) -> Image.Image:
    image = Image.fromarray(scene(30, 41)).convert(mode)
    image.putalpha(Image.fromarray(scene(30, 41, 1)[..., 0]))
    return image


def rotated_by_exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(Image.fromarray(scene(30, 41)), "JPEG", exif=exif)


RGB = Image.fromarray(scene(30, 41))
READABLE = {
    "jpeg 4:2:0": encoded(RGB, "JPEG", subsampling=2, quality=90),
    "jpeg 4:4:4": encoded(RGB, "JPEG", subsampling=0),
    "jpeg progressive": encoded(RGB, "JPEG", progressive=True),
    "jpeg grey": encoded(RGB.convert("L"), "JPEG"),
    "jpeg cmyk": encoded(RGB.convert("CMYK"), "JPEG"),
    "jpeg turned by exif": rotated_by_exif(),
    "jpeg with bytes after its end": encoded(RGB, "JPEG") + b"more",
    "png": encoded(RGB, "PNG"),
    "png grey": encoded(RGB.convert("L"), "PNG"),
    "png palette": encoded(RGB.convert("P"), "PNG", transparency=3),
    "png 1 bit": encoded(RGB.convert("1"), "PNG"),
    "png alpha": encoded(alpha("RGBA"), "PNG"),
    "png grey alpha": encoded(alpha("LA"), "PNG"),
    "webp": encoded(RGB, "WEBP"),
    "gif": encoded(RGB, "GIF"),
    "bmp": encoded(RGB, "BMP"),
}


@pytest.mark.parametrize("name", READABLE)
def test_pixels_are_those_of_the_usual_loader(name: str) -> None:
    data = READABLE[name]
    expected = reference(data)
    header = read_header(data)
    assert header is not None
    assert (header.height, header.width) == expected.shape[:2]
    got = decode(data, header, 1)
    assert got is not None
    assert got.dtype == np.uint8
    assert np.array_equal(got, expected)


def test_an_intact_png_is_read_by_the_faster_library(monkeypatch: pytest.MonkeyPatch) -> None:
    data, read, faster = encoded(Image.fromarray(scene(12, 9)), "PNG"), cv2.imdecode, []
    monkeypatch.setattr(cv2, "imdecode", lambda *given: faster.append(1) or read(*given))
    assert decoded(data) is not None and len(faster) == 1
    decoded(data[:-1] + b"\0")
    assert len(faster) == 1, "a wrong checksum is not for OpenCV"


def test_sixteen_bits_keep_the_upper_byte() -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (20, 30)).astype(np.uint16)
    got = decoded(encoded(Image.fromarray(deep), "PNG"))
    assert got is not None
    assert np.array_equal(got, np.repeat((deep >> 8).astype(np.uint8)[..., None], 3, 2))


@pytest.mark.parametrize("name", ["jpeg 4:2:0", "jpeg 4:4:4", "jpeg grey", "jpeg cmyk", "png", "webp"])
@pytest.mark.parametrize("shrink", [2, 4, 8])
def test_shrinking_is_the_mean_of_the_pixels(name: str, shrink: int) -> None:
    data = encoded(
        Image.fromarray(scene(203, 317)).convert(Image.open(io.BytesIO(READABLE[name])).mode), name.split(maxsplit=1)[0]
    )
    got, full = decoded(data, shrink), reference(data)
    assert got is not None
    assert got.shape == (-(-203 // shrink), -(-317 // shrink), 3)
    height, width = 203 // shrink, 317 // shrink
    blocks = full[: height * shrink, : width * shrink].reshape(height, shrink, width, shrink, 3).mean((1, 3))
    assert np.abs(got[:height, :width] - blocks).mean() < 1.5


def broken() -> dict[str, bytes]:
    jpeg, png, webp = READABLE["jpeg 4:4:4"], READABLE["png"], READABLE["webp"]
    return {
        "nothing": b"",
        "text": b"not an image at all, only text",
        "jpeg marker only": b"\xff\xd8",
        "jpeg cut in its header": jpeg[:80],
        "jpeg cut in its pixels": jpeg[: len(jpeg) * 2 // 3],
        "png cut in its header": png[:20],
        "png cut in its pixels": png[: len(png) // 2],
        "png altered": png[:200] + bytes([png[200] ^ 255]) + png[201:],
        "webp cut": webp[: len(webp) // 2],
        "png of 4 giga-pixels": huge(png),
        "html": b"<!DOCTYPE html><html></html>",
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    }


def huge(png: bytes) -> bytes:
    head = b"IHDR" + struct.pack(">II", 2**16, 2**16) + png[24:29]
    return png[:12] + head + struct.pack(">I", zlib.crc32(head)) + png[33:]


@pytest.mark.parametrize("name", broken())
def test_broken_bytes_give_none(name: str) -> None:
    assert decoded(broken()[name]) is None


def test_random_damage_never_raises_and_is_never_printed(capfd: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for name in ("jpeg 4:2:0", "jpeg progressive", "png", "png palette", "webp", "gif"):
        for _ in range(40):
            data = bytearray(READABLE[name])
            for place in rng.integers(0, len(data), 4):
                data[place] = rng.integers(0, 256)
            got = decoded(bytes(data))
            header = read_header(bytes(data))
            assert got is None or (header is not None and got.shape == (header.height, header.width, 3))
    assert capfd.readouterr() == ("", "")


def test_a_header_that_lies_gives_none() -> None:
    data = READABLE["jpeg 4:4:4"]
    assert decode(data, Header(31, 41, "jpeg"), 1) is None
