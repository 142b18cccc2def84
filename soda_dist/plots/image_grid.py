"""Labelled image grids as PNG."""

from collections.abc import Sequence
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

CELL = 112
"""Least side of an image in pixels; smaller ones are enlarged by an integer factor, nearest neighbour."""
GAP = 6
PAPER, INK = (255, 255, 255), (55, 60, 67)
FONT_SIZE = 13


def image_grid(
    rows: Sequence[Sequence[NDArray[np.uint8]]], columns: Sequence[str], row_names: Sequence[str] = ()
) -> bytes:
    """Draw a grid of images with column headings and optional row names.

    Args:
        rows: images uint8 [h, w, 3], all of one size; each row as long as `columns`.
        columns: headings, wrapped at words to the column width.

    Raises:
        ValueError: no images, or a row whose length differs from `columns`.
    """
    if not rows or any(len(row) != len(columns) for row in rows):
        raise ValueError(f"image_grid: got rows of {[len(row) for row in rows]} images for {len(columns)} columns")
    font = ImageFont.load_default(size=FONT_SIZE)
    height, width = rows[0][0].shape[:2]
    factor = max(1, -(-CELL // max(height, width)))
    cell_w, cell_h = width * factor, height * factor
    headings = [_wrap(name, font, cell_w) for name in columns]
    top = max(len(lines) for lines in headings) * (FONT_SIZE + 4) + GAP
    left = max((round(font.getlength(name)) + GAP for name in row_names), default=0) + GAP
    size = (left + len(columns) * (cell_w + GAP), top + len(rows) * (cell_h + GAP))
    canvas = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(canvas)
    for column, lines in enumerate(headings):
        middle = left + column * (cell_w + GAP) + cell_w // 2
        pen.multiline_text((middle, top - GAP), "\n".join(lines), INK, font, anchor="md", align="center", spacing=2)
    for row, images in enumerate(rows):
        y = top + row * (cell_h + GAP)
        if row_names:
            pen.text((left - GAP, y + cell_h // 2), row_names[row], INK, font, anchor="rm")
        for column, image in enumerate(images):
            shown = Image.fromarray(image).resize((cell_w, cell_h), Image.Resampling.NEAREST)
            canvas.paste(shown, (left + column * (cell_w + GAP), y))
    out = BytesIO()
    canvas.save(out, format="PNG", optimize=True)
    return out.getvalue()


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Wrap text at words to lines of at most `width` pixels; a longer word gets its own line."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
