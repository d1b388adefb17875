"""The charts of a report: curves of one or several runs, workers over time, histograms of a dataset."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from cluster.run.curves import Curves, smoothed
from jobs.reporting.drawings import BAD, GOOD, GRID, INK, SERIES, WORK, draw
from jobs.reporting.reading import RunRecord
from jobs.reporting.timeline import Event, Timeline, most_workers

MAX_POINTS = 300  # per curve: more than a panel has pixels for
_SMOOTHING_SAMPLES = 12_800  # 100 steps of the paper's batch
_WINDOWS = 20  # at least so many fit into a run


@dataclass(frozen=True)
class LegendEntry:
    """An entry of a chart's legend, which the page writes as text.

    Attributes:
        text: What the mark stands for.
        mark: CSS class of the mark: `line`, `points`, `area`, `cross`, `up`, `down`, `square` or `dot`.
        color: CSS variable of its colour.
    """

    text: str
    mark: str
    color: str


# Event -> marker and colour in the drawing, and its entry of the legend.
_MARKERS = {
    "lost": ("X", BAD, LegendEntry("lost", "cross", "--bad")),
    "joined": ("^", GOOD, LegendEntry("joined", "up", "--good")),
    "fewer": ("v", BAD, LegendEntry("fewer", "down", "--bad")),
    "stop": ("s", INK, LegendEntry("stopped", "square", "--soft")),
    "failed": ("s", BAD, LegendEntry("failed", "square", "--bad")),
    "finish": ("o", INK, LegendEntry("finished", "dot", "--soft")),
}


@dataclass(frozen=True)
class Chart:
    """A chart with what stands above it.

    Attributes:
        title: Quantity and unit.
        svg: The drawing.
        note: What the values are, or empty.
        legend: Entries of the legend; none if the page has one for all charts.
    """

    title: str
    svg: Markup
    note: str = ""
    legend: Sequence[LegendEntry] = ()


def curve_charts(records: Sequence[RunRecord], name: str) -> list[Chart]:
    """Return the charts over epochs of the runs that have steps: loss, top-1, learning rate, speed, waits.

    Args:
        records: Runs; one has a colour for training and one for validation, several have one each.
        name: Prefix of the charts' names.
    """
    begun = [record for record in records if record.curves is not None]
    if not begun:
        return []
    windows = {_window(one) * one.global_batch_size for record in begun if (one := record.curves)}
    samples = " to ".join(f"{window:,}" for window in sorted({min(windows), max(windows)}))
    means = f"mean of the last {samples} samples, on augmented pictures."
    legend = (
        []
        if len(records) > 1
        else [LegendEntry("training", "line", "--s1"), LegendEntry("validation", "points", "--s2")]
    )
    who = " and ".join(record.label for record in begun)
    charts = [
        Chart(
            "Loss",
            draw(f"{name}-loss", f"Loss of {who} over epochs", _curves(records, "loss")),
            f"Training: {means}",
            legend,
        ),
        Chart(
            "Top-1 accuracy, %",
            draw(f"{name}-top1", f"Top-1 accuracy of {who} over epochs", _curves(records, "top1")),
            f"Training: {means} The log has one value for up to 20 steps.",
            legend,
        ),
    ]
    for field, title, factor, is_whole, about in (
        ("learning_rate", "Learning rate", 1.0, False, "At the last step of each line of the log."),
        ("images_per_second", "Images per second", 1.0, False, "All workers together, without evaluations."),
        ("data_wait_fraction", "Data wait, % of the step", 100.0, True, "Of the first worker's device."),
    ):
        plot = _lines(records, field, factor, is_whole)
        charts.append(Chart(title, draw(f"{name}-{field.replace('_', '-')}", f"{title} of {who}", plot), about))
    return charts


def _window(curves: Curves) -> int:
    """Return the number of steps of a mean. Each run has its own: a short run beside long ones changes no other."""
    return max(1, min(_SMOOTHING_SAMPLES // curves.global_batch_size, len(curves.samples_seen) // _WINDOWS))


def _curves(records: Sequence[RunRecord], quantity: str) -> Callable[[Axes], None]:
    def plot(axes: Axes) -> None:
        for index, record in enumerate(records):
            if (one := record.curves) is None:
                continue
            training, validation = (
                (one.losses, one.val_losses)
                if quantity == "loss"
                else ((1 - one.top1_errors) * 100, (1 - one.val_top1_errors) * 100)
            )
            seen, means = smoothed(one.samples_seen, training, _window(one))
            color, other = (SERIES[index], SERIES[index]) if len(records) > 1 else SERIES[:2]
            _plot(axes, seen / one.num_samples, means, color)
            val_epochs = one.val_samples_seen / one.num_samples
            size = 3.4 if len(val_epochs) <= 40 else 0
            axes.plot(
                *thinned(val_epochs, validation), "o-", color=other, markersize=size, linewidth=1.1,
                dashes=(4, 2), markeredgewidth=0, clip_on=False,
            )  # fmt: skip
        over_epochs(axes, 100.0 if quantity == "top1" else None)

    return plot


def _lines(records: Sequence[RunRecord], field: str, factor: float, is_share: bool) -> Callable[[Axes], None]:
    def plot(axes: Axes) -> None:
        for index, record in enumerate(records):
            epochs = np.array([line.epoch for line in record.steps])
            values = np.array([getattr(line, field) for line in record.steps], dtype=np.float64) * factor
            if len(epochs):
                _plot(axes, epochs, values, SERIES[index])
        over_epochs(axes, 100.0 if is_share else None)

    return plot


def _plot(axes: Axes, x: np.ndarray, y: np.ndarray, color: str) -> None:
    """Draw a curve. A single value becomes a dot, since a line would show nothing."""
    axes.plot(
        *thinned(x, y), marker="o" if len(x) == 1 else "", markersize=3.4, markeredgewidth=0, clip_on=False,
        color=color, linewidth=1.4, solid_capstyle="round",
    )  # fmt: skip


def over_epochs(axes: Axes, top: float | None) -> None:
    """Make the x-axis one of epochs, and let the y-axis reach from 0 to `top`, or to a little more than the values."""
    axes.set_xlabel("epochs")
    axes.set_xlim(left=0)
    axes.margins(x=0.02)
    axes.set_ylim(0, top or axes.dataLim.y1 * 1.05 or 1)  # room above a line that hardly changes


def workers_chart(timeline: Timeline, name: str, label: str) -> Chart:
    """Return the number of workers over time, with losses, joins and stops marked."""
    unit, seconds_per_unit = _time_unit(timeline.wall_seconds)
    kinds = {event.kind for event in timeline.events}
    legend = [entry for kind, (_, _, entry) in _MARKERS.items() if kind in kinds]

    def plot(axes: Axes) -> None:
        for stretch in timeline.stretches:
            x = [stretch.begin / seconds_per_unit, stretch.end / seconds_per_unit]
            axes.fill_between(x, 0, stretch.num_workers, color=WORK, linewidth=0)
            axes.plot(x, [stretch.num_workers] * 2, color=SERIES[0], linewidth=1.6, solid_capstyle="butt")
        for event in timeline.events:
            if event.kind in _MARKERS:
                mark, color, _ = _MARKERS[event.kind]
                y = _height(event, timeline)
                axes.plot([event.seconds / seconds_per_unit], [y], mark, color=color, markersize=6, markeredgewidth=0)
        top = most_workers(timeline)
        step = max(1, -(-top // 5))
        axes.set_yticks(range(0, top + 1, step))
        axes.set_ylim(0, top * 1.18)
        axes.set_xlim(0, max(timeline.wall_seconds / seconds_per_unit * 1.03, 1e-3))
        axes.set_xlabel(f"{unit} since the run began")
        axes.grid(axis="y", color=GRID, linewidth=0.7)

    svg = draw(f"{name}-workers", f"Number of workers of {label} over time", plot)
    return Chart("Workers", svg, legend=legend)


def _height(event: Event, timeline: Timeline) -> float:
    """Return the number of workers at an event; at the end of a stretch, of those that worked until then."""
    if event.num_workers:
        return event.num_workers
    before = [stretch.num_workers for stretch in timeline.stretches if stretch.begin <= event.seconds]
    return before[-1] if before else 0


def _time_unit(seconds: float) -> tuple[str, float]:
    if seconds < 180:
        return "seconds", 1.0
    return ("minutes", 60.0) if seconds < 3 * 3600 else ("hours", 3600.0)


def thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return at most `MAX_POINTS` evenly spaced points of a curve, its ends among them."""
    if len(x) <= MAX_POINTS:
        return x, y
    chosen = np.linspace(0, len(x) - 1, MAX_POINTS).round().astype(np.int64)
    return x[chosen], y[chosen]
