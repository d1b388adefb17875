"""Figure of the exchanges against r: where each of them is the fastest.

r is the time that the bytes of all-reduce take on the link over the time of the forward and backward passes. It is what
decides between the exchanges: clusters of the same r, model and number of workers have the same curves, whatever their
bandwidth and their speed.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator
from numpy.typing import ArrayLike

from cluster.lab.cost_model.crossings import find_crossings
from cluster.lab.cost_model.kind import Kind, exchange_ratio
from cluster.lab.cost_model.model import CostModel, Network
from cluster.lab.efficiency import by_cell, paired_ratio
from cluster.lab.scaling_table import NO_EXCHANGE, Cell, Row
from jobs.scaling.style import COLORS, FAINT, MARKS, TEXT, draw_interval, exchange_name, in_order, new_figure, plain

_PANEL_WIDTH, _PANEL_HEIGHT, _MARGIN, _LEAST_WIDTH = 4.4, 3.5, 0.9, 6.2  # inches
_MOST_COLUMNS = 2
_BEYOND = 4.0  # factor of r that a panel shows on either side of the measured links
_NUM_PLACES = 400
_DESCRIBED = (0.001, 1000.0)  # r between which crossings are told


@dataclass(frozen=True)
class Panel:
    """A number of workers and a batch.

    Attributes:
        cells: Rows of its cells with an exchange and a measured link.
        alone: Rows without an exchange.
        model: Cost model whose bandwidths are those that exchanges get.
        r_gigabits: r times bandwidth in Gbit/s.
    """

    cells: dict[Cell, list[Row]]
    alone: list[Row]
    model: CostModel
    r_gigabits: float

    @property
    def cell(self) -> Cell:
        """One of its cells."""
        return next(iter(self.cells))

    @property
    def exchanges(self) -> list[str]:
        """Its exchanges."""
        return in_order(cell.exchange for cell in self.cells)

    def r(self, cell: Cell) -> float:
        """Return r of a cell, by the bandwidth that its link was measured to have."""
        return self.r_gigabits / (median(row.link_bytes_per_second for row in self.cells[cell]) * 8e-9)

    def crossings(self, exchanges: Sequence[str], low: float, high: float) -> list[tuple[float, str]]:
        """Return each r from `low` to `high` from which on another of some exchanges is the fastest, and that one."""
        found = find_crossings(self.model, self.cell, exchanges, self.r_gigabits / high, self.r_gigabits / low)
        return [(self.r_gigabits / one.gigabits_per_second, one.below) for one in reversed(found)]

    def predicted(self, exchange: str, r_P: np.ndarray) -> np.ndarray:
        """Return the predicted throughput, over that without an exchange, at each r."""
        alone = self.model.predict(self.cell.without_exchange).step_seconds
        steps = [
            self.model.predict(
                dataclasses.replace(self.cell, exchange=exchange, gigabits_per_second=self.r_gigabits / r)
            ).step_seconds
            for r in map(float, r_P)
        ]
        return alone / np.array(steps)


def draw_exchanges(kind: Kind, rows: Sequence[Row], model: CostModel) -> Figure:
    """Return the figure, with a panel for each number of workers and batch."""
    panels = find_panels(rows, model)
    columns = min(_MOST_COLUMNS, len(panels))
    num_rows = -(-len(panels) // columns)
    width = max(_LEAST_WIDTH, _PANEL_WIDTH * columns + 0.4)
    figure = new_figure(width, _PANEL_HEIGHT * num_rows + _MARGIN)
    grid = figure.subplots(num_rows, columns, squeeze=False, sharey=True)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    num_crossings = sum(_draw_panel(axes, panel) for axes, panel in zip(grid.flat, panels, strict=False))
    grid[0][0].set_ylim(bottom=0)  # of all panels, now that all have been drawn
    for axes in grid[:, 0]:
        axes.set_ylabel("throughput, % of that without exchange")
    figure.suptitle(str(kind), fontsize=10.5, color=TEXT)
    exchanges = in_order(name for panel in panels for name in panel.exchanges)
    handles = [Line2D([], [], color=COLORS[name], marker=MARKS[name], markersize=5) for name in exchanges]
    labels = list(map(exchange_name, exchanges))
    if num_crossings:
        handles.append(Line2D([], [], color=FAINT, linestyle="--", linewidth=1))
        labels.append("the fastest exact exchange changes (model)")
    figure.legend(handles, labels, loc="outside lower center", ncols=5 if columns > 1 else 3, frameon=False, fontsize=9)
    return figure


def find_panels(rows: Sequence[Row], model: CostModel) -> list[Panel]:
    """Return the panels of the rows of one kind, which the model was fitted to."""
    as_measured = Network(message_seconds=model.network.message_seconds)
    model = dataclasses.replace(model, network=as_measured)
    cells = by_cell(rows)
    groups: dict[Cell, dict[Cell, list[Row]]] = {}
    for cell, found in cells.items():
        has_exchange = cell.exchange != NO_EXCHANGE and cell.num_workers > 1
        if has_exchange and np.isfinite(found[0].link_bytes_per_second) and cell.without_exchange in cells:
            groups.setdefault(cell.without_exchange, {})[cell] = found
    panels = []
    for alone, members in groups.items():
        passes = median(row.forward_seconds + row.backward_seconds for row in cells[alone])
        panels.append(Panel(members, cells[alone], model, exchange_ratio(alone, 1e9 / 8, passes)))
    return panels


def describe_crossings(kind: Kind, rows: Sequence[Row], model: CostModel) -> Iterator[str]:
    """Yield a line for each panel and exchange: from which r on it is faster than all-reduce, by the cost model."""
    for panel in find_panels(rows, model):
        cell = panel.cell
        place = f"{kind.model}, {cell.num_workers} workers, global batch {cell.global_batch_size}"
        for exchange in panel.exchanges:
            if exchange != "allreduce":
                yield f"{place}: {_wins(panel, exchange)}"


def _wins(panel: Panel, exchange: str) -> str:
    low, high = _DESCRIBED
    crossings = panel.crossings(("allreduce", exchange), low, high)
    ends = [f"{faster} is faster from r = {_place(panel, r)}" for r, faster in crossings]
    if not ends:
        ahead = panel.predicted(exchange, np.array([low])) > panel.predicted("allreduce", np.array([low]))
        ends = [f"{exchange if ahead.all() else 'allreduce'} is faster at any r from {low:g} to {high:g}"]
    return f"{exchange} and allreduce: " + ", ".join(ends)


def _place(panel: Panel, r: float) -> str:
    return f"{r:.2g} ({panel.r_gigabits / r:.2g} Gbit/s)"


def _draw_panel(axes: Axes, panel: Panel) -> int:
    """Draw a panel, and return the number of crossings in it."""
    measured = [panel.r(cell) for cell in panel.cells]
    low, high = min(measured) / _BEYOND, max(measured) * _BEYOND
    r_P = np.geomspace(low, high, _NUM_PLACES)
    for exchange in panel.exchanges:
        axes.plot(r_P, 100 * panel.predicted(exchange, r_P), color=COLORS[exchange], linewidth=1.3)
    for cell, found in panel.cells.items():
        if (ratio := paired_ratio(found, panel.alone)) is not None:
            draw_interval(axes, panel.r(cell), ratio, cell.exchange, scale=100)
    plain(axes)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.set_xlabel("r: exchange time of all-reduce / computing time")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_title(f"{panel.cell.num_workers} workers, global batch {panel.cell.global_batch_size}", fontsize=10)

    def exchanged(places: ArrayLike) -> np.ndarray:  # bandwidth of r, and r of a bandwidth
        with np.errstate(divide="ignore"):  # Matplotlib tries 0 as well
            return panel.r_gigabits / np.asarray(places)

    gigabits = axes.secondary_xaxis("top", functions=(exchanged, exchanged))
    gigabits.set_xlabel("bandwidth in Gbit/s", fontsize=9)
    gigabits.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    gigabits.xaxis.set_minor_locator(NullLocator())
    gigabits.xaxis.set_major_formatter("{x:g}")
    gigabits.tick_params(labelsize=8.5)
    exact = [exchange for exchange in panel.exchanges if exchange != "bf16"]
    crossings = panel.crossings(exact, low, high)
    for r, fastest in crossings:
        axes.axvline(r, color=FAINT, linestyle="--", linewidth=1, zorder=1)
        axes.annotate(
            f"{fastest} from r = {r:.2g}", (r, 2), xytext=(2, 0), textcoords="offset points", rotation=90,
            fontsize=7.5, color=TEXT, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.8},
        )  # fmt: skip
    return len(crossings)
