"""What a step's time consists of: over epochs for one run, as one bar each for several."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from cluster.run.run_log import Steps
from jobs.reporting.charts import Chart, LegendEntry, over_epochs, thinned
from jobs.reporting.drawings import BACKWARD, FORWARD, REST, UPDATE, WAIT, draw
from jobs.reporting.reading import RunRecord

# From the bottom up: title, colour in the drawing, CSS variable, and the field of a log's line.
_PARTS = (
    ("forward", FORWARD, "--forward", "forward_fraction"),
    ("backward, exchange", BACKWARD, "--backward", "backward_fraction"),
    ("update", UPDATE, "--update", "update_fraction"),
    ("rest", REST, "--rest", None),
    ("data wait", WAIT, "--wait", "data_wait_fraction"),
)


@dataclass(frozen=True)
class StepPart:
    """A part of the median step.

    Attributes:
        title: What the time is spent on.
        css: CSS variable of its colour.
        seconds: Its median time.
    """

    title: str
    css: str
    seconds: float


def step_parts(record: RunRecord) -> list[StepPart]:
    """Return the parts of a run's median step that take time, from the bottom up; none before the third step."""
    if record.step_seconds is None:
        return []
    fractions_PS = _fractions(record.steps)
    medians = np.median(np.repeat(fractions_PS, _num_steps(record.steps), axis=1), axis=1)
    seconds = medians / medians.sum() * record.step_seconds
    return [
        StepPart(title, css, float(time)) for (title, _, css, _), time in zip(_PARTS, seconds, strict=True) if time > 0
    ]


def step_legend(records: Sequence[RunRecord]) -> list[LegendEntry]:
    """Return the legend's entries for the parts that any of the runs has."""
    shown = {part.title for record in records for part in step_parts(record)}
    return [LegendEntry(title, "area", css) for title, _, css, _ in _PARTS if title in shown]


def step_time_chart(record: RunRecord, name: str) -> Chart:
    """Return the chart of a run with steps: the time of a step over epochs, divided into its parts.

    Args:
        record: The run.
        name: Prefix of the chart's name.
    """
    milliseconds = np.array(
        [record.run.config.global_batch_size / line.images_per_second * 1e3 for line in record.steps]
    )
    tops_PS = np.cumsum(_fractions(record.steps) * milliseconds, axis=0)
    first = record.steps[0]
    # A line's time is that of all its steps: the area of the first begins where its first step began.
    epochs = np.array([first.epoch * (1 - len(first.losses) / first.step), *(line.epoch for line in record.steps)])

    def plot(axes: Axes) -> None:
        below = 0.0 * thinned(epochs, epochs)[1]
        for (_, color, _, _), top in zip(_PARTS, tops_PS, strict=True):
            x, above = thinned(epochs, np.array([top[0], *top]))
            axes.fill_between(x, below, above, color=color, linewidth=0, step="pre")
            below = above
        over_epochs(axes, None)
        # The first steps wait for the loader to start and would hide all others.
        axes.set_ylim(0, float(np.quantile(np.repeat(milliseconds, _num_steps(record.steps)), 0.95)) * 1.25)

    legend = step_legend([record])
    label = f"Time of a step of {record.label}, divided into {', '.join(entry.text for entry in legend)}"
    note = "Of the first worker's device. Slow first steps may exceed the scale."
    return Chart("Step time, ms", draw(f"{name}-step-time", label, plot), note, legend)


def _num_steps(lines: Sequence[Steps]) -> list[int]:
    return [len(line.losses) for line in lines]


def _fractions(lines: Sequence[Steps]) -> np.ndarray:
    """Return the fraction of each part of each line's time, float64 (P, S); what a log does not divide is the rest."""
    known = {field: [getattr(line, field) or 0.0 for line in lines] for *_, field in _PARTS if field is not None}
    rest = np.maximum(0.0, 1 - np.sum(list(known.values()), axis=0))
    return np.array([rest if field is None else known[field] for *_, field in _PARTS])
