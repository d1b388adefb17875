"""Draw the training and validation curves of runs: loss and top-1 error.

    python jobs/curves.py RUN --out OUT.png
    python jobs/curves.py runs/relu runs/tanh --out OUT.png --x samples --samples-to-error 0.25

Training values are means over a number of samples, which the axes state. They are measured on augmented pictures with
dropout, and so may be higher than validation values. --samples-to-error prints the number of samples after which each
run's mean training error first falls to a value, the comparison of ReLU with tanh in figure 1 of the 2012 paper.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from jobs.bootstrap import prepare

    prepare("curves")

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import tyro
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from cluster.run.curves import Curves, read_curves, samples_to_error, smoothed
from cluster.run.run_folder import RunFolder
from pipeline.command import InputError, run_command
from pipeline.pictures.figures import check_figure_path, write_figure

XAxis = Literal["epochs", "samples"]
_SMOOTHING_SAMPLES = 12_800  # 100 steps of the paper's batch
_FEWEST_WINDOWS = 10  # minimum number in the shortest run, unless --smoothing-samples is given


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `jobs/curves.py`."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...")]
    """Run folders, finished or not."""
    out: Path
    """PNG to write."""
    x: XAxis = "epochs"
    """Quantity on the x-axis: epochs, or samples seen."""
    labels: tuple[str, ...] = ()
    """Name of each run in the legend. Default: the name of the run folder."""
    smoothing_samples: int | None = None
    """Number of samples over which training values are averaged. Default: 12,800, or a tenth of the shortest run if
    that is less."""
    samples_to_error: float | None = None
    """Training top-1 error, as a fraction: print the number of samples after which each run first falls to it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    _check(arguments)
    curves = [read_curves(RunFolder.open(path.absolute())) for path in arguments.runs]
    labels = arguments.labels or [path.absolute().name for path in arguments.runs]
    smoothing = _smoothing_samples(arguments.smoothing_samples, curves, labels)
    write_figure(draw_curves(curves, labels, arguments.x, smoothing), arguments.out)
    if arguments.samples_to_error is not None:
        sys.stdout.writelines(_reached_lines(curves, labels, arguments.samples_to_error, smoothing))
    sys.stdout.write(f"curves: {arguments.out}\n")
    return 0


def draw_curves(curves: Sequence[Curves], labels: Sequence[str], x: XAxis, smoothing_samples: int) -> Figure:
    """Return a figure with two panels, loss and top-1 error, and one colour per run."""
    figure = Figure(figsize=(11, 4.8), layout=ConstrainedLayoutEngine(w_pad=0.1))
    loss_axes, error_axes = figure.subplots(1, 2)
    few = len(curves) <= 10
    colors = colormaps["tab10"](np.arange(10)) if few else colormaps["turbo"](np.linspace(0, 1, len(curves)))
    for one, color in zip(curves, colors, strict=False):
        unit = one.num_samples if x == "epochs" else 1
        window = _window(one, smoothing_samples)
        for axes, training, validation, scale in (
            (loss_axes, one.losses, one.val_losses, 1),
            (error_axes, one.top1_errors, one.val_top1_errors, 100),
        ):
            seen, means = smoothed(one.samples_seen, training, window)
            axes.plot(seen / unit, means * scale, color=color, linewidth=1.3)
            axes.plot(one.val_samples_seen / unit, validation * scale, "o--", color=color, markersize=3.5, linewidth=1)
    note = f"training: mean of the last {smoothing_samples:,} samples"
    _label(loss_axes, f"loss\n({note})", x)
    _label(error_axes, f"top-1 error in %\n({note})", x)
    kinds = [
        Line2D([], [], color="#444444"),
        Line2D([], [], color="#444444", linestyle="--", marker="o", markersize=3.5),
    ]
    runs = [Line2D([], [], color=color, linewidth=3) for color, _ in zip(colors, labels, strict=False)]
    figure.legend(
        [*kinds, *runs], ["training", "validation", *map(_legend_text, labels)], loc="outside lower center", ncols=4,
        frameon=False,
    )  # fmt: skip
    return figure


def _label(axes: Axes, y_label: str, x: XAxis) -> None:
    axes.set_xlabel("epochs" if x == "epochs" else "samples seen")
    axes.set_ylabel(y_label)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if x == "samples":
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.locator_params(axis="x", nbins=6)


def _legend_text(label: str) -> str:
    """Return a label that matplotlib shows unchanged, even if it starts with `_` or contains `$`."""
    return (" " * label.startswith("_") + label).replace("$", r"\$")


def _window(curves: Curves, smoothing_samples: int) -> int:
    """Return the number of steps, at least one, whose samples are closest to `smoothing_samples`."""
    return max(1, round(smoothing_samples / curves.global_batch_size))


def _smoothing_samples(requested: int | None, curves: Sequence[Curves], labels: Sequence[str]) -> int:
    """Return the number of samples to average over.

    Raises:
        InputError: A run is shorter than that.
    """
    lengths = [len(one.samples_seen) * one.global_batch_size for one in curves]
    if requested is None:
        return min(_SMOOTHING_SAMPLES, max(1, min(lengths) // _FEWEST_WINDOWS))
    for one, label, length in zip(curves, labels, lengths, strict=True):
        if _window(one, requested) > len(one.samples_seen):
            raise InputError(f"--smoothing-samples is {requested}, but {label} has logged {length} samples; use fewer")
    return requested


def _reached_lines(curves: Sequence[Curves], labels: Sequence[str], error: float, smoothing: int) -> Iterator[str]:
    yield f"samples to a training top-1 error of {error:g} (mean of the last {smoothing:,} samples)\n"
    for one, label in zip(curves, labels, strict=True):
        samples = samples_to_error(one, error, _window(one, smoothing))
        reached = f"{samples:,} ({samples / one.num_samples:.2f} epochs)" if samples is not None else None
        yield f"  {label}: {reached or f'not reached in {one.samples_seen[-1]:,}'}\n"


def _check(arguments: Arguments) -> None:
    """Raise InputError for arguments from which no figure can be drawn."""
    check_figure_path(arguments.out, "--out")
    if not arguments.runs:
        raise InputError("no run is named: jobs/curves.py RUN... --out OUT.png")
    if arguments.labels and len(arguments.labels) != len(arguments.runs):
        raise InputError(f"--labels names {len(arguments.labels)} runs, there are {len(arguments.runs)}; name each")
    if arguments.smoothing_samples is not None and arguments.smoothing_samples < 1:
        raise InputError(f"--smoothing-samples is {arguments.smoothing_samples}; it must be at least 1")
    if arguments.samples_to_error is not None and not 0 <= arguments.samples_to_error <= 1:
        raise InputError(f"--samples-to-error is {arguments.samples_to_error:g}; it must be a fraction, 0 to 1")


if __name__ == "__main__":
    run_command(main)
