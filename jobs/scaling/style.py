"""How the figures of a scaling experiment look: the same colour and mark for an exchange in all of them.

The colours are those of Okabe and Ito, which colour-blind readers can tell apart; marks differ too, for print in grey.
"""

from collections.abc import Iterable

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from cluster.lab.efficiency import Interval
from cluster.lab.scaling_table import NO_EXCHANGE

ORDER = (NO_EXCHANGE, "allreduce", "bf16", "factors", "hybrid")
NAMES = {NO_EXCHANGE: "no exchange"}
COLORS = {
    NO_EXCHANGE: "#555555",
    "allreduce": "#d55e00",
    "bf16": "#e69f00",
    "factors": "#0072b2",
    "hybrid": "#009e73",
}
MARKS = {NO_EXCHANGE: "x", "allreduce": "o", "bf16": "s", "factors": "^", "hybrid": "D"}
TEXT, FAINT = "#333333", "#999999"


def exchange_name(exchange: str) -> str:
    """Return the exchange as a figure names it."""
    return NAMES.get(exchange, exchange)


def in_order(exchanges: Iterable[str]) -> list[str]:
    """Return exchanges in the order of all figures."""
    return sorted(set(exchanges), key=ORDER.index)


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches, which lays itself out."""
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06))


def plain(axes: Axes) -> None:
    """Draw axes with a faint grid and no frame."""
    axes.grid(color="#e3e3e3", linewidth=0.6, which="major")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(which="minor", length=2)


def draw_interval(axes: Axes, x: float, interval: Interval, exchange: str, scale: float = 1.0) -> None:
    """Draw an exchange's value at x with its interval."""
    bars = None
    if interval.is_known:
        bars = [[(interval.value - interval.low) * scale], [(interval.high - interval.value) * scale]]
    axes.errorbar(
        [x], [interval.value * scale], yerr=bars, fmt=MARKS[exchange], color=COLORS[exchange], markersize=5,
        capsize=2.5, elinewidth=1.1, zorder=3,
    )  # fmt: skip
