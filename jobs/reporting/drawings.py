"""Small charts as SVG inside the page, which take their colours and font from the page's style sheet.

Matplotlib draws in marker colours, which become CSS variables afterwards: so one drawing serves the light and the dark
theme. Text stays text. Ids are prefixed by the chart's name, since all drawings of a page share one space of ids.
"""

import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import StrMethodFormatter

INK, GRID, BAD, GOOD, WORK = "#010101", "#010102", "#010103", "#010104", "#010105"
WAIT, FORWARD, BACKWARD, UPDATE, REST = "#010106", "#010107", "#010108", "#010109", "#01010a"
SERIES = tuple(f"#0102{index:02x}" for index in range(1, 9))
"""Colours of up to eight runs, or of training and validation of one."""
_VARIABLES = {
    INK: "var(--soft)",
    GRID: "var(--grid)",
    BAD: "var(--bad)",
    GOOD: "var(--good)",
    WORK: "var(--work)",
    WAIT: "var(--wait)",
    FORWARD: "var(--forward)",
    BACKWARD: "var(--backward)",
    UPDATE: "var(--update)",
    REST: "var(--rest)",
    **{color: f"var(--s{index})" for index, color in enumerate(SERIES, start=1)},
}
_SIZE = (3.8, 2.45)  # inches: 274 points, so that 9 points are legible on a phone
_FONT_SIZE = 9
TICK_STEPS = (1, 2, 5, 10)  # times a power of ten: without 2.5, whose multiples need a digit more
# Fixed names of the parts, text as text, and a style for the drawing alone.
_PARAMETERS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "alexnet-at-scale",
    "font.family": "DejaVu Sans",
    "font.size": _FONT_SIZE,
    "axes.unicode_minus": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.major.size": 3,
    "xtick.major.pad": 5,
    "ytick.major.size": 0,
}


def draw(name: str, label: str, plot: Callable[[Axes], None]) -> Markup:
    """Return a chart as an `<svg>` element.

    Args:
        name: Name of the chart, unique on its page; letters, digits and `-`.
        label: Description for those who can't see it.
        plot: Draws on the axes, in the colours of this module.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's own style would change the page
        matplotlib.rcParams.update(_PARAMETERS)
        figure = Figure(figsize=_SIZE, layout=ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03))
        axes = figure.subplots()
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.grid(axis="y", color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.locator_params(nbins=5, steps=TICK_STEPS)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
        plot(axes)
        content = io.BytesIO()
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inlined(content.getvalue().decode(), name, label)


def _inlined(svg: str, name: str, label: str) -> Markup:
    body = svg[svg.index("<svg") :]
    view_box = re.search(r'viewBox="([^"]+)"', body)
    assert view_box is not None
    body = body[body.index(">") + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    referenced = set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", body))
    body = re.sub(r' id="([^"]+)"', lambda match: f' id="{name}-{match[1]}"' if match[1] in referenced else "", body)
    body = re.sub(r"(url\(|href=\")#", rf"\1#{name}-", body)
    body = re.sub(r"'DejaVu Sans'(?:, [^;\"]+)?", "var(--sans)", body)
    body = re.sub(r"#010[12][0-9a-f]{2}", lambda match: _VARIABLES[match[0]], body)
    body = re.sub(r"\s*\n\s*", "\n", body).strip()
    return Markup(f'<svg role="img" aria-label="{escape(label)}" viewBox="{view_box[1]}">{body}')
