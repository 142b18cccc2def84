"""Grids: every image where its row and column say, at a size that is seen."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from soda_dist.plots.image_grid import CELL, GAP, image_grid


def _read(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(png)).convert("RGB"))


def _plain(colour: tuple[int, int, int], size: int = 16) -> np.ndarray:
    return np.full((size, size, 3), colour, np.uint8)


def test_each_image_stands_in_its_row_and_column() -> None:
    rows = [[_plain((40 * row, 60 * column, 200)) for column in range(4)] for row in range(3)]
    grid = _read(image_grid(rows, ["a", "b", "c", "d"]))
    side = -(-CELL // 16) * 16
    top, left = grid.shape[0] - 3 * (side + GAP), grid.shape[1] - 4 * (side + GAP)
    for row in range(3):
        for column in range(4):
            y, x = top + row * (side + GAP), left + column * (side + GAP)
            assert (grid[y : y + side, x : x + side] == (40 * row, 60 * column, 200)).all()


def test_small_images_are_enlarged_pixel_by_pixel_and_large_ones_kept() -> None:
    rng = np.random.default_rng(0)
    small, large = (rng.integers(0, 256, (size, size, 3), np.uint8) for size in (8, 150))
    grid = _read(image_grid([[small]], ["a"]))
    assert (grid[-GAP - 112 : -GAP, -GAP - 112 : -GAP] == small.repeat(14, axis=0).repeat(14, axis=1)).all()
    grid = _read(image_grid([[large]], ["a"]))
    assert (grid[-GAP - 150 : -GAP, -GAP - 150 : -GAP] == large).all()


def test_names_of_rows_and_columns_are_drawn_beside_the_images() -> None:
    image = _plain((255, 255, 255))
    bare = _read(image_grid([[image]], [""]))
    named = _read(image_grid([[image]], ["a heading of several words"], ["row"]))
    assert (bare == 255).all()
    assert named.shape[0] > bare.shape[0] and named.shape[1] > bare.shape[1]
    assert (named[:, : named.shape[1] - bare.shape[1]] < 128).any()
    assert (named[: named.shape[0] - bare.shape[0]] < 128).any()


@pytest.mark.parametrize("rows", [[], [[_plain((0, 0, 0))] * 2]])
def test_rows_that_do_not_fit_the_columns_are_refused(rows: list[list[np.ndarray]]) -> None:
    with pytest.raises(ValueError, match="columns"):
        image_grid(rows, ["a", "b", "c"])
