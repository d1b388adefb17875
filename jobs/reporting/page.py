"""The page: one HTML file that needs neither network nor scripts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from jobs.reporting import words
from jobs.reporting.charts import Chart, LegendEntry, curve_charts
from jobs.reporting.comparison import Difference, differences
from jobs.reporting.dataset_view import SIGMAS
from jobs.reporting.pictures import SHEET_EPOCHS
from jobs.reporting.proof import Proof, prove_order
from jobs.reporting.reading import RunRecord
from jobs.reporting.run_view import RunView, view_run
from jobs.reporting.step_time import step_legend
from pipeline.system.byte_counts import readable_bytes

MAX_EVENTS = 40  # of a run's workers that the page lists


@dataclass(frozen=True)
class Comparison:
    """Several runs beside each other.

    Attributes:
        charts: Their curves in the same axes.
        step_legend: Legend of what their steps consist of.
        differences: Fields in which they differ.
        orders: For each run, whether it consumed the samples of the first; None for the first.
    """

    charts: Sequence[Chart]
    step_legend: Sequence[LegendEntry]
    differences: Sequence[Difference]
    orders: Sequence[Proof | None]


@dataclass(frozen=True)
class Page:
    """A report.

    Attributes:
        html: The page.
        faults: Labels of the runs whose ledger shows a fault.
    """

    html: str
    faults: Sequence[str]


def make_page(records: Sequence[RunRecord], data: Path | None) -> Page:
    """Make the report of one or several runs.

    Args:
        records: What the runs' folders tell.
        data: Dataset folder of all runs; None: where each run says that its own is.
    """
    views = [view_run(record, f"run{index}", data) for index, record in enumerate(records, start=1)]
    comparison = _compare(records) if len(records) > 1 else None
    html = _template().render(
        views=views,
        comparison=comparison,
        title=_title(views),
        sigmas=SIGMAS,
        num_epochs_shown=SHEET_EPOCHS,
        max_events=MAX_EVENTS,
    )
    return Page(html, [view.record.label for view in views if view.proof.verdict == "fault"])


def _compare(records: Sequence[RunRecord]) -> Comparison:
    return Comparison(
        charts=curve_charts(records, "all"),
        step_legend=step_legend(records),
        differences=differences(records),
        orders=[None, *(prove_order(records[0].run, record.run) for record in records[1:])],
    )


def _title(views: Sequence[RunView]) -> str:
    if len(views) == 1:
        return f"{views[0].record.run.config.model.name} on {views[0].data_name}"
    models = list(dict.fromkeys(view.record.run.config.model.name for view in views))
    data = list(dict.fromkeys(view.data_name for view in views))
    what = models[0] if len(models) == 1 else f"{len(models)} models"
    return f"{words.plural(len(views), 'run')} of {what} on {data[0] if len(data) == 1 else f'{len(data)} datasets'}"


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jobs.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        name: getattr(words, name)
        for name in ("percent", "count", "duration", "first_name", "plural", "value", "sentence", "breakable", "signed")
    }
    environment.filters["readable_bytes"] = readable_bytes
    return environment.get_template("report.html")
