"""Show what a dataset holds: splits, classes, sizes, bytes, notes, rejects, source and colours.

    python -m pipeline.stats DATASET
    python -m pipeline.stats DATASET --figure OUT.png

All figures come from the dataset's own documents; no picture is read, so that even ImageNet takes seconds. Sizes of
source pictures are those of upright pictures before they were cut and resized. The dataset keeps mean, deviation and
eigenbasis of the training pixels, but no histogram of their values. --json prints everything, with the number of
pictures of every class.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pipeline.command import InputError, run_command
from pipeline.dataset import Dataset
from pipeline.json_answer import JsonTarget, completed, json_answer
from pipeline.stats_text import lines_of
from pipeline.summary import summarize


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `python -m pipeline.stats`."""

    dataset: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]
    """Dataset folder."""
    figure: Path | None = None
    """PNG to draw: classes, sizes, aspect ratios, bytes and colours."""
    json: JsonTarget = None
    """File to write the figures to as JSON; without a file, standard output."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    arguments = tyro.cli(Arguments, args=completed(argv), description=__doc__)
    dataset = Dataset.open(arguments.dataset)
    if arguments.figure is not None:
        _check_figure(arguments.figure, dataset)
    with json_answer(arguments.json, dataset.path) as answer:
        summary = summarize(dataset)
        sys.stdout.write("".join(f"{line}\n" for line in lines_of(summary)))
        answer(summary.document())
        if arguments.figure is not None:
            # Imported here: matplotlib takes a while, and the tables do without it.
            from pipeline.pictures.figures import write_figure
            from pipeline.stats_figure import draw_summary

            write_figure(draw_summary(summary), arguments.figure)
            sys.stdout.write(f"figure: {arguments.figure}\n")
    return 0


def _check_figure(path: Path, dataset: Dataset) -> None:
    """Raise InputError if the figure could not be written to a path, or lies in the dataset."""
    from pipeline.pictures.figures import check_figure_path

    check_figure_path(path, "--figure")
    if dataset.path.resolve() in path.resolve().parents:
        raise InputError(f"--figure {path} lies in the dataset, which holds only its own files; name another OUT.png")


if __name__ == "__main__":
    run_command(main)
