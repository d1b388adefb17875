"""Pictures with captions on one white sheet, in rows of cells; drawn with Pillow.

The same rows give the same pixels, as long as Pillow and its built-in font are the same; texts beyond ASCII are drawn
by a font that has their letters (pipeline/pictures/fonts.py).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from pipeline.pictures.fonts import best_font, covering_fonts, drawable, warn_of_missing_letters

# In pixels.
_MARGIN, _GAP = 24, 16
_TITLE_SIZE, _TITLE_HEIGHT = 20, 32
_TEXT_SIZE, _LINE_HEIGHT = 13, 18
_INK, _FAINT, _FRAME = "black", "#555555", "#bbbbbb"


@dataclass(frozen=True)
class Cell:
    """One picture, with its text beneath.

    Attributes:
        picture: As it is drawn, see `fit`.
        caption: Lines of text; one that is too long loses its middle.
        width: Of the column, in pixels; a wider picture makes it wider.
    """

    picture: Image.Image
    caption: Sequence[str]
    width: int


@dataclass(frozen=True, kw_only=True)
class Row:
    """What stands side by side.

    Attributes:
        title: In large letters; none if empty.
        lines: Of text, above the cells.
        cells: From left to right, aligned at the top.
    """

    title: str = ""
    lines: Sequence[str] = ()
    cells: Sequence[Cell] = ()


def fit(pixels_HWC: np.ndarray, side: int) -> Image.Image:
    """Return a picture for a square cell: all of it, in its proportions.

    Args:
        pixels_HWC: uint8 RGB.
        side: Of the cell, in pixels.

    Returns:
        A smaller picture with each pixel repeated, by the largest whole factor that fits: what is seen are its own
        pixels. A larger one scaled down (bicubic, antialiased).
    """
    picture = Image.fromarray(pixels_HWC)
    width, height = picture.size
    longer = max(width, height)
    if longer <= side:
        factor = side // longer
        return picture.resize((width * factor, height * factor), Image.Resampling.NEAREST)
    target = max(1, round(width * side / longer)), max(1, round(height * side / longer))
    return picture.resize(target, Image.Resampling.BICUBIC)


def draw_sheet(rows: Iterable[Row]) -> Image.Image:
    """Return the sheet, RGB, as large as its rows need; letters that no installed font has are told in one line."""
    rows = [_drawable(row) for row in rows]
    texts = [
        text for row in rows for text in (row.title, *row.lines, *(line for cell in row.cells for line in cell.caption))
    ]
    warn_of_missing_letters(covering_fonts(text for text in texts if not text.isascii())[1])
    drawn = [_draw_row(row) for row in rows]
    size = max(picture.width for picture in drawn), sum(picture.height for picture in drawn)
    sheet = Image.new("RGB", (size[0] + 2 * _MARGIN, size[1] + 2 * _MARGIN), "white")
    top = _MARGIN
    for picture in drawn:
        sheet.paste(picture, (_MARGIN, top))
        top += picture.height
    return sheet


def _draw_row(row: Row) -> Image.Image:
    texts = [(row.title, _TITLE_SIZE, _TITLE_HEIGHT)] if row.title else []
    texts += [(line, _TEXT_SIZE, _LINE_HEIGHT) for line in row.lines]
    # Framed, so that a white picture ends somewhere too.
    pictures = [ImageOps.expand(cell.picture, 1, _FRAME) for cell in row.cells]
    widths = [max(cell.width + 2, picture.width) for cell, picture in zip(row.cells, pictures, strict=True)]
    heights = [
        picture.height + _LINE_HEIGHT * len(cell.caption) for cell, picture in zip(row.cells, pictures, strict=True)
    ]
    width = max(
        sum(widths) + _GAP * len(widths), *(int(_font(size, text).getlength(text)) + 1 for text, size, _ in texts), 1
    )
    height = sum(height for _, _, height in texts) + max(heights, default=0) + _GAP
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    top = 0
    for text, size, line_height in texts:
        draw.text((0, top), text, _INK, _font(size, text))
        top += line_height
    left = 0
    for cell, picture, cell_width in zip(row.cells, pictures, widths, strict=True):
        image.paste(picture, (left, top))
        for number, line in enumerate(cell.caption):
            position = left, top + picture.height + number * _LINE_HEIGHT + 3
            shown = _shortened(line, cell_width)
            draw.text(position, shown, _FAINT if number else _INK, _font(_TEXT_SIZE, shown))
        left += cell_width + _GAP
    return image


def _drawable(row: Row) -> Row:
    cells = [replace(cell, caption=[drawable(line) for line in cell.caption]) for cell in row.cells]
    return Row(title=drawable(row.title), lines=[drawable(line) for line in row.lines], cells=cells)


def _shortened(text: str, width: int) -> str:
    """Return the text without as much of its middle as is too long for `width` pixels."""
    keep, shown, font = len(text), text, _font(_TEXT_SIZE, text)
    while font.getlength(shown) > width and keep > 2:
        keep -= 1
        shown = f"{text[: keep // 2]}...{text[-(keep - keep // 2) :]}"
    return shown


def _font(size: int, text: str) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return _load_font(size, None if text.isascii() else best_font(text))


@cache
def _load_font(size: int, file: str | None) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size) if file is None else ImageFont.truetype(file, size)
