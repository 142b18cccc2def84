"""Images re-encoded: sizes, quality, cameras, and what becomes of bad rows."""

from collections.abc import Iterator, Sequence
from io import BytesIO

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from skimage.metrics import structural_similarity

from soda_dist.data.preparation.reencode import Reencoded, reencode, reencoding
from soda_dist.data.shards import Reencoding
from soda_dist.data.source import Contents, Part, Row
from soda_dist.data.sources import parse_options
from soda_dist.errors import UserError
from tests.data.views.test_decode import scene


def encoded(height: int, width: int, kind: str, mode: str = "RGB") -> bytes:
    out = BytesIO()
    Image.fromarray(scene(height, width)).convert(mode).save(
        out, format=kind, **({"quality": 98} if kind == "JPEG" else {})
    )
    return out.getvalue()


def opened(row: Row) -> Image.Image:
    assert row.problem is None
    return Image.open(BytesIO(row.image))


@pytest.mark.parametrize(
    ("kind", "mode", "size", "max_side", "becomes"),
    [
        ("JPEG", "RGB", (300, 400), 200, (150, 200)),
        ("JPEG", "RGB", (1700, 450), 200, (200, 53)),  # decoded at an eighth
        ("PNG", "RGB", (401, 300), 200, (200, 150)),
        ("PNG", "RGBA", (100, 80), 200, (100, 80)),
        ("WEBP", "RGB", (90, 300), 150, (45, 150)),
        ("JPEG", "L", (60, 400), 200, (30, 200)),
        ("JPEG", "CMYK", (300, 200), None, (300, 200)),
        ("PNG", "RGB", (1, 300), 30, (1, 30)),
        ("BMP", "RGB", (90, 300), 150, (45, 150)),
        ("TIFF", "RGB", (90, 300), None, (90, 300)),
        ("GIF", "P", (90, 300), 150, (45, 150)),
    ],
)
def test_sizes_and_pixels(
    kind: str, mode: str, size: tuple[int, int], max_side: int | None, becomes: tuple[int, int]
) -> None:
    """Against Pillow's area average of the same image, encoded by Pillow."""
    data = encoded(*size, kind, mode)
    image = opened(reencode(Row("a", data, {}), Reencoding(max_side=max_side, quality=95)))
    assert (image.format, image.size[::-1]) == ("JPEG", becomes)
    small, out = Image.open(BytesIO(data)).convert("RGB").resize(becomes[::-1], Image.Resampling.BOX), BytesIO()
    small.save(out, format="JPEG", quality=95, subsampling="4:2:0")
    found, wanted = (np.asarray(each.convert("RGB"), np.float64) for each in (image, Image.open(out)))
    assert np.abs(found - wanted).mean() < 2
    if min(becomes) >= 7:
        assert structural_similarity(found, wanted, channel_axis=2, data_range=255) > 0.98


def test_quality_is_that_of_the_jpeg() -> None:
    row = Row("a", encoded(200, 300, "JPEG"), {})
    sizes = [len(reencode(row, Reencoding(max_side=None, quality=quality)).image) for quality in (30, 60, 90)]
    assert sizes[0] < sizes[1] < sizes[2] < len(row.image)
    tables = [opened(reencode(row, Reencoding(max_side=None, quality=q))).quantization[0][0] for q in (50, 90)]  # type: ignore[attr-defined]
    assert tables == [16, 3]  # of the standard: 16 at 50, and a fifth of it at 90


def test_a_point_stays_at_its_place_in_the_image() -> None:
    """A camera's projection, as a share of the width and height, is as before."""
    intrinsics = np.array([[300, 2, 200.5], [0, 280, 151.0], [0, 0, 1]], np.float32)
    columns = {"intrinsics": intrinsics.ravel().tolist(), "camera_to_world": list(range(16)), "label": 3}
    row = reencode(Row("a", encoded(301, 401, "PNG"), columns), Reencoding(max_side=200, quality=90))
    after = np.asarray(row.columns["intrinsics"], np.float64).reshape(3, 3)
    height, width = opened(row).size[::-1]
    assert (height, width) == (150, 200)
    points = np.random.default_rng(0).normal((0, 0, 2), 0.3, (20, 3))
    before, now = points @ intrinsics.T.astype(np.float64), points @ after.T
    before, now = before[:, :2] / before[:, 2:], now[:, :2] / now[:, 2:]
    assert np.allclose(before / [401, 301], now / [width, height], atol=1e-6)
    assert {name: row.columns[name] for name in ("camera_to_world", "label")} == {
        "camera_to_world": list(range(16)), "label": 3,
    }  # fmt: skip


@pytest.mark.parametrize("data", [b"", b"no image", encoded(40, 60, "JPEG")[:300]])
def test_bad_bytes_stay_what_the_import_rejects(data: bytes) -> None:
    row = Row("a", data, {"label": 1})
    assert reencode(row, Reencoding(max_side=20, quality=90)) == row


def test_bytes_that_look_whole_and_are_not() -> None:
    data = encoded(80, 60, "PNG")
    middle = len(data) // 2
    row = reencode(Row("a", data[:middle] + b"\0\0\0\0" + data[middle + 4 :], {}), Reencoding(max_side=20, quality=90))
    assert row.problem == "broken or truncated"


class TwoRows:
    """A source."""

    contents = Contents((pa.field("label", pa.int32()),))

    def parts(self) -> Sequence[Part]:
        return [Part("train", "all")]

    def index(self, part: Part) -> pa.Table:
        return pa.table({"name": ["a", "b"]})

    def rows(self, index: pa.Table) -> Iterator[Row]:
        yield Row("a", encoded(50, 100, "PNG"), {"label": 0})
        yield Row("b", b"", {"label": 1}, "a missing file")


def test_a_source_keeps_everything_else() -> None:
    source = Reencoded(TwoRows(), Reencoding(max_side=40, quality=80))
    part = source.parts()[0]
    one, two = source.rows(source.index(part))
    assert source.contents is TwoRows.contents and part.name == "all"
    assert opened(one).size == (40, 20) and two == Row("b", b"", {"label": 1}, "a missing file")


def test_options() -> None:
    assert reencoding(parse_options("cifar10", [])) is None
    assert reencoding(parse_options("folder", ["max_side=512"])) == Reencoding(max_side=512, quality=90)
    assert reencoding(parse_options("nmr", ["quality=75"])) == Reencoding(max_side=None, quality=75)
    with pytest.raises(UserError, match="max_side: got 0; allowed"):
        parse_options("cifar10", ["max_side=0"])
    with pytest.raises(UserError, match="quality: got 101; allowed"):
        parse_options("cifar10", ["quality=101"])
