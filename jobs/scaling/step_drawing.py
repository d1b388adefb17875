"""Figure of what a step consists of, by workers, link and exchange."""

from collections.abc import Sequence
from statistics import median

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from cluster.lab.cost_model.kind import Kind
from cluster.lab.efficiency import by_cell, step_seconds
from cluster.lab.scaling_table import NO_EXCHANGE, Cell, Row, counted
from jobs.scaling.style import ORDER, TEXT, exchange_name, new_figure, plain

PARTS = ("data wait", "forward", "backward", "waiting for the exchange", "update", "rest")
_COLORS = ("#e69f00", "#56b4e9", "#0072b2", "#d55e00", "#999999", "#dddddd")
_PANEL_WIDTH, _BAR_HEIGHT, _MARGIN = 4.3, 0.24, 1.5  # inches
_GAP = 0.6  # bars' heights between two links


def draw_steps(kind: Kind, rows: Sequence[Row]) -> Figure:
    """Return the figure, with a panel for each number of workers and batch.

    What a step waits for the exchange lies in its forward and its backward pass; the forward pass is shown as long as
    it is without an exchange, the backward pass as the rest of both.
    """
    cells = by_cell(rows)
    panels = sorted({(cell.num_workers, cell.global_batch_size) for cell in cells if cell.num_workers > 1})
    panels = panels or sorted({(cell.num_workers, cell.global_batch_size) for cell in cells})
    bars = sorted({_bar(cell) for cell in cells if (cell.num_workers, cell.global_batch_size) in panels}, key=_place)
    places = _places(bars)
    columns = min(2, len(panels))
    num_rows = -(-len(panels) // columns)
    height = max(places.values()) + 1
    figure = new_figure(_PANEL_WIDTH * columns + 1.2, num_rows * (height * _BAR_HEIGHT + 0.8) + _MARGIN)
    grid = figure.subplots(num_rows, columns, squeeze=False, sharey=True)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, (num_workers, batch) in zip(grid.flat, panels, strict=False):
        for cell, found in cells.items():
            if (cell.num_workers, cell.global_batch_size) == (num_workers, batch):
                _draw_bar(axes, places[_bar(cell)], step_parts(found, cells))
        axes.set_title(f"{counted(num_workers, 'worker')}, global batch {batch}", fontsize=10)
        axes.set_xlabel("seconds per step")
        axes.set_xlim(0, 1.03 * axes.dataLim.x1)
        plain(axes)
        axes.grid(visible=False, axis="y")
    grid[0][0].set_yticks(list(places.values()), [_label(bar) for bar in bars])
    for axes in grid[:, 0]:
        axes.tick_params(axis="y", labelsize=8.5)
    grid[0][0].set_ylim(height - 0.4, -0.6)
    figure.suptitle(str(kind), fontsize=10.5, color=TEXT)
    patches = [Patch(color=color) for color in _COLORS]
    figure.legend(patches, PARTS, loc="outside lower center", ncols=6 if columns > 1 else 3, frameon=False, fontsize=9)
    return figure


def step_parts(rows: Sequence[Row], cells: dict[Cell, list[Row]]) -> list[float]:
    """Return the seconds of each of `PARTS` of a cell, medians over its blocks.

    Args:
        rows: Rows of the cell.
        cells: Rows of all cells, for its forward pass without an exchange.
    """
    alone = cells.get(rows[0].cell.without_exchange, rows)
    forward = min(median(row.forward_seconds for row in group) for group in (rows, alone))
    passes = median(row.forward_seconds + row.backward_seconds - row.blocked_seconds for row in rows)
    wait = median(row.data_wait_seconds for row in rows)
    blocked, update = median(row.blocked_seconds for row in rows), median(row.update_seconds for row in rows)
    known = wait + passes + blocked + update
    rest = max(0.0, step_seconds(rows) - known)
    return [wait, forward, max(0.0, passes - forward), blocked, update, rest]


def _draw_bar(axes: Axes, place: float, seconds: Sequence[float]) -> None:
    left = 0.0
    for part, color in zip(seconds, _COLORS, strict=True):
        axes.barh(place, part, left=left, color=color, height=0.82)
        left += part


def _bar(cell: Cell) -> tuple[float, str]:
    return cell.gigabits_per_second, cell.exchange


def _place(bar: tuple[float, str]) -> tuple[bool, float, int]:
    gigabits, exchange = bar
    return exchange != NO_EXCHANGE, gigabits, ORDER.index(exchange)


def _places(bars: Sequence[tuple[float, str]]) -> dict[tuple[float, str], float]:
    """Return the place of each bar, with a gap between links."""
    places, at, previous = {}, 0.0, None
    for bar in bars:
        if previous is not None and bar[0] != previous:
            at += _GAP
        places[bar], previous = at, bar[0]
        at += 1
    return places


def _label(bar: tuple[float, str]) -> str:
    gigabits, exchange = bar
    return exchange_name(exchange) + (f", {gigabits:g} Gbit/s" if gigabits else "")
