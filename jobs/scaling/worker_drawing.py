"""Figure of throughput and efficiency against workers, with the ideal and each ceiling."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from cluster.lab.cost_model.kind import Kind
from cluster.lab.cost_model.model import CostModel
from cluster.lab.efficiency import Scaling, batch_kept, by_cell, efficiencies, throughput
from cluster.lab.scaling_table import NO_EXCHANGE, Cell, Row
from jobs.scaling.style import COLORS, FAINT, MARKS, TEXT, draw_interval, exchange_name, in_order, new_figure, plain

_NARROW, _WIDE, _HEIGHT = 6.2, 4.2, 6.4  # inches: a single column, each of several, all rows
_ROOM = 1.35  # factor above the ideal, and below the lowest point, that a panel shows


def links_of(rows: Sequence[Row]) -> list[float]:
    """Return the bandwidths of the cells with an exchange, in Gbit/s; 0: as it is."""
    return sorted({row.gigabits_per_second for row in rows if row.exchange != NO_EXCHANGE and row.num_workers > 1})


def draw_workers(kind: Kind, rows: Sequence[Row], gigabits: float, model: CostModel | None) -> Figure | None:
    """Return the figure of one link, with a column for each batch; None where no cell compares with one worker.

    Args:
        kind: What all rows have in common.
        rows: Rows of that kind.
        gigabits: Bandwidth of the link.
        model: Cost model, for the ceilings; None: without those of the exchange and the loader.
    """
    on_link = [row for row in rows if row.exchange == NO_EXCHANGE or row.gigabits_per_second == gigabits]
    columns = _columns(on_link)
    if not columns:
        return None
    figure = new_figure(_NARROW if len(columns) == 1 else _WIDE * len(columns), _HEIGHT)
    grid = figure.subplots(2, len(columns), squeeze=False, sharex="col", sharey="row")
    for (scaling, batch), upper, lower in zip(columns, grid[0], grid[1], strict=True):
        _draw_throughput(upper, on_link, scaling, batch, gigabits, model)
        _draw_efficiency(lower, on_link, scaling, batch)
        kept = f"global batch {batch}" if scaling == "strong" else f"batch {batch} per worker"
        upper.set_title(f"{scaling} scaling: {kept}", fontsize=10)
        lower.set_xlabel("workers")
    grid[0][0].set_ylabel("images/s")
    grid[1][0].set_ylabel("efficiency, %")
    link = f", {gigabits:g} Gbit/s per worker" if gigabits else ""
    figure.suptitle(f"{kind}{link}", fontsize=10.5, color=TEXT)
    _draw_legend(figure, on_link, model, num_columns=4 if len(columns) > 1 else 3)
    return figure


def _columns(rows: Sequence[Row]) -> list[tuple[Scaling, int]]:
    """Return the ways of scaling in which several workers are compared with one, with their batches."""
    columns = ((each.scaling, batch_kept(each.scaling, each.cell)) for each in efficiencies(rows))
    return sorted({(scaling, batch) for scaling, batch in columns if batch is not None})


def _draw_throughput(
    axes: Axes, rows: Sequence[Row], scaling: Scaling, batch: int, gigabits: float, model: CostModel | None
) -> None:
    cells = {cell: found for cell, found in by_cell(rows).items() if batch_kept(scaling, cell) == batch}
    alone = throughput(next(found for cell, found in cells.items() if _is_alone(cell))).value
    numbers = sorted({cell.num_workers for cell in cells})
    ideal = [alone * number for number in numbers]
    axes.plot(numbers, ideal, color=FAINT, linestyle="--", linewidth=1.2, zorder=1)
    for exchange in in_order(cell.exchange for cell in cells):
        points = {cell.num_workers: throughput(found) for cell, found in cells.items() if cell.exchange == exchange}
        if exchange != NO_EXCHANGE:
            points.setdefault(1, throughput(next(found for cell, found in cells.items() if _is_alone(cell))))
        places = sorted(points)
        axes.plot(places, [points[at].value for at in places], color=COLORS[exchange], linewidth=1.3, zorder=2)
        for at in places:
            draw_interval(axes, at, points[at], exchange if at > 1 else NO_EXCHANGE)
        if model is not None and exchange != NO_EXCHANGE and gigabits:
            _draw_exchange_alone(axes, model, [c for c in cells if c.exchange == exchange and c.num_workers > 1])
    if model is not None and model.pace.loader_images_per_second * numbers[-1] < ideal[-1] * _ROOM:
        rate = model.pace.loader_images_per_second
        axes.plot(numbers, [rate * number for number in numbers], color="#cc79a7", linestyle="-.", linewidth=1.2)
    lowest = min(throughput(found).value for found in cells.values())
    _workers_axis(axes, numbers)
    axes.set_yscale("log", base=10)
    axes.set_ylim(lowest / _ROOM, ideal[-1] * _ROOM)
    axes.yaxis.set_major_locator(_few_ticks(lowest / _ROOM, ideal[-1] * _ROOM))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")


def _draw_exchange_alone(axes: Axes, model: CostModel, cells: Sequence[Cell]) -> None:
    places = sorted(cells, key=lambda cell: cell.num_workers)
    if len(places) > 1:
        axes.plot(
            [cell.num_workers for cell in places],
            [cell.global_batch_size / model.predict(cell).exchange_alone_seconds for cell in places],
            color=COLORS[places[0].exchange], linestyle=":", linewidth=1.3, zorder=1,
        )  # fmt: skip


def _draw_efficiency(axes: Axes, rows: Sequence[Row], scaling: Scaling, batch: int) -> None:
    found = [each for each in efficiencies(rows) if each.scaling == scaling and batch_kept(scaling, each.cell) == batch]
    numbers = sorted({1, *(each.cell.num_workers for each in found)})
    axes.plot(numbers, [100] * len(numbers), color=FAINT, linestyle="--", linewidth=1.2, zorder=1)
    for exchange in in_order(each.cell.exchange for each in found):
        points = {each.cell.num_workers: each.efficiency for each in found if each.cell.exchange == exchange}
        places = sorted(points)
        values = [100.0, *(points[at].value * 100 for at in places)]
        axes.plot([1, *places], values, color=COLORS[exchange], linewidth=1.3, zorder=2)
        for at in places:
            draw_interval(axes, at, points[at], exchange, scale=100)
    _workers_axis(axes, numbers)
    highest = max((each.efficiency.value for each in efficiencies(rows)), default=1.0)  # of all panels
    axes.set_ylim(0, 108 * max(1.0, highest))


def _workers_axis(axes: Axes, numbers: Sequence[int]) -> None:
    plain(axes)
    axes.set_xscale("log", base=2)
    axes.set_xticks(numbers, [str(number) for number in numbers])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(numbers[0] / 1.12, numbers[-1] * 1.12)


def _few_ticks(low: float, high: float) -> LogLocator:
    """Return a locator of 1, 2 and 5 times powers of ten, or of more where these are few."""
    is_narrow = high / low < 8
    return LogLocator(base=10, subs=(1, 1.5, 2, 3, 4, 5, 6, 8) if is_narrow else (1, 2, 5), numticks=20)


def _draw_legend(figure: Figure, rows: Sequence[Row], model: CostModel | None, num_columns: int) -> None:
    exchanges = in_order(row.exchange for row in rows if row.num_workers > 1)
    handles = [Line2D([], [], color=COLORS[name], marker=MARKS[name], markersize=5) for name in exchanges]
    labels = ["computation alone" if name == NO_EXCHANGE else exchange_name(name) for name in exchanges]
    handles.append(Line2D([], [], color=FAINT, linestyle="--"))
    labels.append("ideal")
    if model is not None and any(row.gigabits_per_second for row in rows):
        handles.append(Line2D([], [], color=TEXT, linestyle=":"))
        labels.append("exchange alone (model)")
    if model is not None and model.pace.loader_images_per_second < float("inf"):
        handles.append(Line2D([], [], color="#cc79a7", linestyle="-."))
        labels.append("loader alone")
    figure.legend(handles, labels, loc="outside lower center", ncols=num_columns, frameon=False, fontsize=9)


def _is_alone(cell: Cell) -> bool:
    return cell.num_workers == 1 and cell.exchange == NO_EXCHANGE
