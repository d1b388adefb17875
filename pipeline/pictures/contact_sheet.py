"""Pictures with captions in rows of cells on one white sheet, drawn with Pillow.

The same rows give the same pixels with the same version of Pillow and its built-in font. Text outside ASCII is drawn in
a font that has its letters (pipeline/pictures/fonts.py).
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
    """A picture with text beneath it.

    Attributes:
        picture: Picture in the size to draw; see `fit`.
        caption: Lines of text; a line that is too long is shortened in the middle.
        width: Minimum width of the cell, in pixels; a wider picture widens it.
    """

    picture: Image.Image
    caption: Sequence[str]
    width: int


@dataclass(frozen=True, kw_only=True)
class Row:
    """Cells side by side, with text above them.

    Attributes:
        title: Title in large letters; empty for none.
        lines: Lines of text above the cells.
        cells: Cells from left to right, aligned at the top.
    """

    title: str = ""
    lines: Sequence[str] = ()
    cells: Sequence[Cell] = ()


def fit(pixels_HWC: np.ndarray, side: int) -> Image.Image:
    """Return a picture that fits into a square cell, whole and in its proportions.

    Args:
        pixels_HWC: Pixels of the picture, uint8 RGB.
        side: Side of the cell, in pixels.

    Returns:
        A small picture is enlarged by repeating each pixel, by the largest whole factor that fits, so its own pixels
        are visible. A large picture is scaled down (bicubic, antialiased).
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
    """Return the sheet, RGB, as large as its rows require; warn in one line of letters that no installed font has."""
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
    # A frame shows where a white picture ends.
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
    """Return the text, shortened in the middle if it is longer than `width` pixels."""
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
