"""Figure of predictions, after figure 4 of the 2012 paper: each picture beside its five best classes."""

import math
from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cluster.worker.prediction import Prediction

PICTURES_PER_PAGE = 30
_NUM_COLUMNS = 3
_CELL_WIDTH, _CELL_HEIGHT = 4.6, 1.75  # inches
_SIDE, _MARGIN, _PERCENT = 1.35, 0.15, 0.45  # inches: the picture, around a cell, the percentages after the bars
_WRONG_COLOR, _TRUE_COLOR, _TRUE_TEXT, _GREY = "#b9d0ea", "#f2a9a2", "#b3261e", "#666666"
_MAX_NAME, _MAX_FILE_NAME = 44, 50  # characters; text that is still too wide is cut off at the edge


def draw_pages(predictions: Sequence[Prediction], class_names: Sequence[str]) -> Iterator[Figure]:
    """Yield the pages: grids of at most `PICTURES_PER_PAGE` pictures, in order.

    If the file's folder names a class, that class is written above the bars, and its bar has a different colour.
    """
    for first in range(0, len(predictions), PICTURES_PER_PAGE):
        yield _draw_page(predictions[first : first + PICTURES_PER_PAGE], class_names)


def _draw_page(predictions: Sequence[Prediction], class_names: Sequence[str]) -> Figure:
    num_columns = min(_NUM_COLUMNS, len(predictions))
    num_rows = math.ceil(len(predictions) / num_columns)
    width, height = num_columns * _CELL_WIDTH + _MARGIN, num_rows * _CELL_HEIGHT + _MARGIN
    figure = Figure(figsize=(width, height))

    def axes(left: float, top: float, wide: float, high: float) -> Axes:
        return figure.add_axes((left / width, 1 - (top + high) / height, wide / width, high / height))

    for place, prediction in enumerate(predictions):
        row, column = divmod(place, num_columns)
        left, top = column * _CELL_WIDTH + _MARGIN, row * _CELL_HEIGHT + _MARGIN
        _draw_picture(axes(left, top, _SIDE, _SIDE), prediction)
        bars_left = left + _SIDE + _MARGIN
        bars_width = _CELL_WIDTH - _SIDE - 2 * _MARGIN - _PERCENT
        _draw_bars(axes(bars_left, top + 0.22, bars_width, _SIDE - 0.22), prediction, class_names)
    return figure


def _draw_picture(axes: Axes, prediction: Prediction) -> None:
    axes.imshow(prediction.square_HWC, interpolation="nearest" if len(prediction.square_HWC) < 128 else "antialiased")
    axes.set_axis_off()
    name = shortened(prediction.path.name, _MAX_FILE_NAME)
    axes.text(0, -0.03, name, transform=axes.transAxes, va="top", fontsize=6.5, color=_GREY, parse_math=False)


def _draw_bars(axes: Axes, prediction: Prediction, class_names: Sequence[str]) -> None:
    true_class, classes = prediction.true_class_index, prediction.class_indices
    colors = [_TRUE_COLOR if index == true_class else _WRONG_COLOR for index in classes]
    axes.barh(range(len(classes)), prediction.probabilities, color=colors, height=0.86)
    axes.set_xlim(0, 1)
    axes.set_ylim(4.5, -0.5)  # space for five bars, with the best on top
    axes.set_xticks([])
    axes.set_yticks([])
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    axes.spines["left"].set_color(_GREY)
    for place, (index, probability) in enumerate(zip(classes, prediction.probabilities, strict=True)):
        name = shortened(class_names[index], _MAX_NAME)
        axes.text(0.015, place, name, va="center", fontsize=7.5, clip_on=True, parse_math=False)
        axes.text(1.02, place, f"{probability:.1%}", va="center", fontsize=7, color=_GREY)
    if true_class is not None:
        name = shortened(class_names[true_class], _MAX_NAME)
        axes.text(
            0, 1.04, name, transform=axes.transAxes, va="bottom", fontsize=8, weight="bold", color=_TRUE_TEXT,
            parse_math=False,
        )  # fmt: skip


def shortened(text: str, max_length: int) -> str:
    """Return the text, cut to `max_length` characters with an ellipsis if it is longer."""
    return text if len(text) <= max_length else text[: max_length - 1].rstrip(" ,") + "…"
