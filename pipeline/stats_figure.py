"""The summary of a dataset as a figure: classes, sizes, shapes, bytes and colours."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from pipeline.format.color import ColorBasis
from pipeline.pictures.fonts import drawable
from pipeline.summary import DatasetSummary, Histogram, SplitSummary

_SPLIT_COLORS = {"train": "#3b6ea8", "val": "#d98032", "test": "#5f9a4a"}
_SOURCE_COLOR, _STORED_COLOR = "#888888", "#3b6ea8"
_CHANNEL_COLORS = {"red": "#c8403a", "green": "#3f9a4e", "blue": "#3a62b4", "luma": "#555555"}
_COUNT = "pictures"
_MOST_BARS = 20  # classes that are named
_NAME_LETTERS = 14
_NUM_BINS = 40
_SIGMAS = np.arange(-3, 4)


def draw_summary(summary: DatasetSummary) -> Figure:
    """Return the figure: two rows of four panels."""
    figure = Figure(figsize=(18, 8.6), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    panels = figure.subplots(2, 4).ravel().tolist()
    dataset, train = summary.dataset, summary.splits["train"]
    figure.suptitle(
        f"{_plain(dataset.path.name)}: {summary.num_samples:,} pictures of {dataset.num_classes:,} classes, "
        f"encoding {dataset.encoding}"
    )
    _draw_classes(panels[0], summary.splits, dataset.class_names)
    _draw_histograms(
        panels[1],
        {"width": train.histograms["source_width"], "height": train.histograms["source_height"]},
        ("#3b6ea8", "#d98032"),
    )
    _finish(panels[1], "Size of source pictures of train", "pixels", _COUNT)
    _draw_shapes(panels[2], train)
    _draw_histograms(
        panels[3],
        {"source": train.histograms["source_bytes"], "stored": train.histograms["stored_bytes"]},
        (_SOURCE_COLOR, _STORED_COLOR),
        scale=1000,
    )
    _finish(panels[3], "Bytes of a picture of train", "kB", _COUNT)
    _draw_levels(panels[4], dataset.color_basis, summary.luma)
    _draw_components(panels[5], dataset.color_basis)
    _draw_swatches(panels[6], dataset.color_basis)
    _draw_mean_image(panels[7], summary)
    return figure


def _finish(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if y_label == _COUNT:
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.set_ylim(0, axes.get_ylim()[1] * 1.12)  # room for the legend
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9, ncols=3, loc="upper right", borderaxespad=0)


def _draw_classes(axes: Axes, splits: Mapping[str, SplitSummary], names: list[str]) -> None:
    """Draw the number of pictures of each class, from the largest class of train to the smallest."""
    order_C = np.argsort(-splits["train"].class_counts_C, kind="stable")
    width, x_C = 0.8 / len(splits), np.arange(len(order_C))
    is_named = len(order_C) <= _MOST_BARS
    for index, (name, split) in enumerate(splits.items()):
        color = _SPLIT_COLORS[name]
        if is_named:
            offset = (index - (len(splits) - 1) / 2) * width
            axes.bar(x_C + offset, split.class_counts_C[order_C], width, color=color, label=name)
        else:
            counts_C = np.sort(split.class_counts_C)[::-1]  # each split by itself: its line falls
            axes.stairs(counts_C, np.arange(len(counts_C) + 1), color=color, linewidth=1.5, label=name)
    if is_named:
        axes.set_xticks(x_C, [_short(names[index]) for index in order_C], rotation=60, ha="right", fontsize=8)
    axes.margins(x=0.02)
    _finish(axes, "Pictures per class", "" if is_named else "classes, by number of pictures", _COUNT)
    if is_named:
        axes.grid(axis="x", visible=False)


def _draw_histograms(
    axes: Axes, histograms: Mapping[str, Histogram], colors: tuple[str, str], scale: float = 1
) -> None:
    """Draw histograms over common bins, of which there are as many as a person can tell apart."""
    if all(len(histogram.edges_B) == 1 for histogram in histograms.values()):
        values = [f"{name} {_value(histogram)}" for name, histogram in histograms.items()]
        _say(axes, "all pictures alike:\n" + "\n".join(values))
        return
    first = min(histogram.quantile(0) for histogram in histograms.values())
    last = max(histogram.quantile(1) + histogram.bin_width for histogram in histograms.values())
    bin_width = next(iter(histograms.values())).bin_width
    # A whole number of the histograms' own bins: otherwise some would seem fuller than their neighbours.
    step = bin_width * max(1, -(-(last - first) // (bin_width * _NUM_BINS)))
    edges = np.arange(first, last + step, step)
    for (label, histogram), color in zip(histograms.items(), colors, strict=True):
        counts, _ = np.histogram(histogram.edges_B, edges, weights=histogram.counts_B)
        axes.stairs(counts, edges / scale, color=color, fill=True, alpha=0.35)
        axes.stairs(counts, edges / scale, color=color, linewidth=1.3, label=label)


def _value(histogram: Histogram) -> str:
    """Return the one value, or the one bin, of a histogram."""
    least = histogram.quantile(0)
    return f"{least:,}" if histogram.bin_width == 1 else f"{least:,} to {least + histogram.bin_width - 1:,}"


def _draw_shapes(axes: Axes, split: SplitSummary) -> None:
    ratios, counts = split.aspect_ratios
    if len(ratios) == 1:
        _say(axes, f"every stored picture\nhas the aspect ratio {ratios[0]:.3g};\nthat of source pictures\nis not kept")
    else:
        edges = np.geomspace(ratios[0] * 0.995, ratios[-1] * 1.005, _NUM_BINS + 1)
        binned, _ = np.histogram(ratios, edges, weights=counts)
        axes.stairs(binned, edges, color=_STORED_COLOR, fill=True, alpha=0.35)
        axes.stairs(binned, edges, color=_STORED_COLOR, linewidth=1.3)
        axes.axvline(1, color="#333333", linewidth=0.8, linestyle=":")
    _finish(axes, "Aspect ratio of stored pictures of train", "width / height", _COUNT)


def _draw_levels(axes: Axes, basis: ColorBasis, luma: tuple[float, float]) -> None:
    """Draw mean and deviation of each channel and of luma."""
    means = [*(basis.mean_3 * basis.pixel_scale).tolist(), luma[0]]
    deviations = [*(basis.std_3 * basis.pixel_scale).tolist(), luma[1]]
    for row, (color, mean, deviation) in enumerate(zip(_CHANNEL_COLORS.values(), means, deviations, strict=True)):
        axes.errorbar(mean, row, xerr=deviation, fmt="o", color=color, linewidth=2.5, capsize=4)
        axes.text(mean, row - 0.18, f"{mean:.1f} ± {deviation:.1f}", ha="center", fontsize=9, color=color)
    axes.set_yticks(range(4), list(_CHANNEL_COLORS))
    axes.set_ylim(3.5, -0.6)
    axes.set_xlim(0, 255)
    _finish(axes, "Pixels of train: mean ± standard deviation", "grey levels", "")


def _draw_components(axes: Axes, basis: ColorBasis) -> None:
    """Draw the eigenvectors as bars, with their share of the variance."""
    channels = [name for name in _CHANNEL_COLORS if name != "luma"]
    for row, channel in enumerate(channels):
        x_3 = np.arange(3) + (row - 1) * 0.25
        axes.bar(x_3, basis.eigenvectors_33[row], 0.25, color=_CHANNEL_COLORS[channel], label=channel)
    labels = [f"component {i + 1}\n{share:.1%}" for i, share in enumerate(_shares(basis))]
    axes.set_xticks(range(3), labels)
    axes.axhline(0, color="#333333", linewidth=0.8)
    axes.set_ylim(-1, 1.35)
    _finish(axes, "Eigenvectors of the colours, share of variance", "", "")
    axes.legend(frameon=False, fontsize=9, ncols=3, loc="upper center")


def _draw_swatches(axes: Axes, basis: ColorBasis) -> None:
    """Draw the mean colour, moved along each component by multiples of its standard deviation."""
    moved_3S3 = basis.mean_3 + np.einsum("s,k,ck->ksc", _SIGMAS, np.sqrt(basis.eigenvalues_3), basis.eigenvectors_33)
    axes.imshow(moved_3S3.clip(0, 1), aspect="auto", interpolation="nearest")
    axes.set_xticks(range(len(_SIGMAS)), [f"{sigma:+d}" if sigma else "mean" for sigma in _SIGMAS])
    axes.set_yticks(range(3), [f"component {index + 1}" for index in range(3)])
    axes.set_title("Mean colour, moved along the components", fontsize=11)
    axes.set_xlabel("standard deviations")
    axes.tick_params(length=0)
    for edge in (0.5, 1.5):
        axes.axhline(edge, color="white", linewidth=6)
    axes.spines[:].set_visible(False)


def _draw_mean_image(axes: Axes, summary: DatasetSummary) -> None:
    if summary.has_mean_image:
        axes.imshow(summary.dataset.mean_image_HWC / 255, interpolation="nearest")
    else:
        _say(axes, "no mean picture:\nthe pictures differ in size")
    axes.set_title("Mean picture of train", fontsize=11)
    axes.axis("off")


def _shares(basis: ColorBasis) -> np.ndarray:
    total = basis.eigenvalues_3.sum()
    return basis.eigenvalues_3 / total if total else basis.eigenvalues_3


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, fontsize=10, color="#555555")
    axes.set_axis_off()


def _short(name: str) -> str:
    first = _plain(name.partition(",")[0])
    return first if len(first) <= _NAME_LETTERS else first[: _NAME_LETTERS - 1] + "…"


def _plain(name: str) -> str:
    """Return a name that matplotlib draws as it is: `$` would begin a formula."""
    return drawable(name).replace("$", r"\$")
