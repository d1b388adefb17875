"""A dataset on the page: counts, histograms, and the colours' principal components as swatches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from jobs.reporting.charts import Chart, LegendEntry
from jobs.reporting.drawings import SERIES, TICK_STEPS, draw
from pipeline.dataset import Dataset
from pipeline.format.color import ColorBasis
from pipeline.summary import DatasetSummary, Histogram, SplitSummary, summarize

SIGMAS = (-3, -2, -1, 0, 1, 2, 3)
_MOST_BARS = 30
_NUM_BINS = 40


@dataclass(frozen=True)
class Component:
    """A principal component of the colours.

    Attributes:
        eigenvalue: Variance along it, pixels in [0, 1].
        share: Fraction of all variance.
        vector: Its red, green and blue.
        swatches: The mean colour, moved along it by each of `SIGMAS`, as CSS colours.
    """

    eigenvalue: float
    share: float
    vector: Sequence[float]
    swatches: Sequence[str]


@dataclass(frozen=True)
class DatasetView:
    """A dataset on the page.

    Attributes:
        dataset: The dataset.
        splits: Its splits.
        rejects: Reason -> number of rejected pictures.
        notes: Note -> number of stored pictures that have it.
        charts: Histograms.
    """

    dataset: Dataset
    splits: Sequence[SplitSummary]
    rejects: Mapping[str, int]
    notes: Mapping[str, int]
    charts: Sequence[Chart]

    @property
    def form(self) -> str:
        """Form in which pictures are stored, in words."""
        sizes = {size for split in self.splits for size in split.stored_sizes}
        width, height = min(sizes)
        return f"{self.dataset.encoding}, " + (f"{width}x{height} pixels" if len(sizes) == 1 else "of several sizes")


def view_dataset(dataset: Dataset, name: str) -> DatasetView:
    """Return what the page shows of a dataset.

    Args:
        dataset: The dataset.
        name: Prefix of the charts' names.

    Raises:
        InputError: A document of the dataset is missing or was changed.
    """
    summary = summarize(dataset)
    splits = list(summary.splits.values())
    return DatasetView(
        dataset=dataset,
        splits=splits,
        rejects=_added(list(summary.rejects.values())),
        notes=_added([split.notes for split in splits]),
        charts=[_classes_chart(summary, name), *_size_charts(summary.splits["train"], name)],
    )


def components(basis: ColorBasis) -> list[Component]:
    """Return the principal components, largest first."""
    total = float(basis.eigenvalues_3.sum()) or 1.0
    exact_3 = np.where(basis.eigenvalues_3 > total * 1e-12, basis.eigenvalues_3, 0)  # of grey pictures, two are noise
    found = []
    for eigenvalue, vector_3 in zip(exact_3.tolist(), basis.eigenvectors_33.T, strict=True):
        moved = [basis.mean_3 + sigma * np.sqrt(eigenvalue) * vector_3 for sigma in SIGMAS]
        found.append(
            Component(eigenvalue, eigenvalue / total, vector_3.tolist(), [css_color(one_3) for one_3 in moved])
        )
    return found


def css_color(color_3: np.ndarray) -> str:
    """Return red, green and blue in [0, 1] as a CSS colour, clipped to what a screen shows."""
    red, green, blue = np.rint(np.clip(color_3, 0, 1) * 255).astype(int).tolist()
    return f"rgb({red} {green} {blue})"


def _added(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for one in counts:
        for name, number in one.items():
            total[name] = total.get(name, 0) + number
    return total


def _classes_chart(summary: DatasetSummary, name: str) -> Chart:
    names = list(summary.splits)

    def plot(axes: Axes) -> None:
        for index, split in enumerate(summary.splits.values()):
            counts = np.sort(split.class_counts_C)[::-1]
            if len(counts) <= _MOST_BARS:
                width = 0.8 / len(names)
                axes.bar(
                    np.arange(1, len(counts) + 1) + (index - (len(names) - 1) / 2) * width,
                    counts,
                    width,
                    color=SERIES[index],
                )
            else:
                axes.stairs(counts, np.arange(len(counts) + 1) + 0.5, color=SERIES[index], linewidth=1.4)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=TICK_STEPS))
        axes.set_xlabel("classes, the largest first")
        _count_upwards(axes)

    legend = [LegendEntry(split, "area", f"--s{index}") for index, split in enumerate(names, start=1)]
    svg = draw(f"{name}-classes", "Number of pictures of each class, by split", plot)
    return Chart("Pictures per class", svg, legend=legend)


def _size_charts(train: SplitSummary, name: str) -> list[Chart]:
    pixels = {"width": train.histograms["source_width"], "height": train.histograms["source_height"]}
    stored = {"source": train.histograms["source_bytes"], "stored": train.histograms["stored_bytes"]}
    return [
        _histogram_chart("Source size, pixels", pixels, f"{name}-pixels", 1, "pixels"),
        _histogram_chart("Picture size, kB", stored, f"{name}-bytes", 1000, "kB"),
    ]


def _histogram_chart(title: str, histograms: Mapping[str, Histogram], name: str, scale: float, unit: str) -> Chart:
    """Return histograms over common bins; the legend tells single values, which are drawn only without others."""
    single = {label: one for label, one in histograms.items() if len(one.edges_B) == 1}
    drawn = {label: one for label, one in histograms.items() if label not in single}

    def plot(axes: Axes) -> None:
        shown = drawn or histograms
        bin_width = max(one.bin_width for one in shown.values())
        first = min(one.quantile(0) for one in shown.values()) // bin_width * bin_width
        last = max(one.quantile(1) + one.bin_width for one in shown.values())
        # A whole number of the histograms' own bins: otherwise some would seem fuller than their neighbours.
        step = bin_width * max(1, -(-(last - first) // (bin_width * _NUM_BINS)))
        edges = np.arange(first, last + step, step)
        for index, (label, one) in enumerate(histograms.items()):
            if label in shown:
                counts, _ = np.histogram(one.edges_B, edges, weights=one.counts_B)
                axes.stairs(counts, edges / scale, color=SERIES[index], fill=True, alpha=0.25, linewidth=0)
                axes.stairs(counts, edges / scale, color=SERIES[index], linewidth=1.3)
        if len(edges) == 2:
            axes.set_xlim(max(0, first - 4 * step) / scale, (last + 4 * step) / scale)
        axes.set_xlabel(unit)
        _count_upwards(axes)

    legend = [
        LegendEntry(f"{label}: all {_single_value(one, scale)}" if label in single else label, "area", f"--s{index}")
        for index, (label, one) in enumerate(histograms.items(), start=1)
    ]
    return Chart(title, draw(name, f"{title}, training pictures", plot), "Number of training pictures.", legend)


def _single_value(histogram: Histogram, scale: float) -> str:
    """Return the value that all pictures have, or the bin in which all are."""
    least = int(histogram.edges_B[0])
    if histogram.bin_width == 1:
        return f"{least / scale:g}"
    return f"{least / scale:.3g} to {(least + histogram.bin_width) / scale:.3g}"


def _count_upwards(axes: Axes) -> None:
    """Let the y-axis count pictures from 0 on."""
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True, steps=TICK_STEPS))
