"""Evaluate a run's model on each picture of a split exactly once, with the centre crop or ten crops.

    python jobs/evaluate.py --run RUN
    python jobs/evaluate.py --data DATASET --run RUN --crops ten --workers 8
    python jobs/evaluate.py --source PHOTOS --run RUN

The model is the best on `val`, or the last one if the dataset has no `val`. With ten crops, as in the 2012 paper, the
softmax is averaged over the corners, the centre and their mirror images. The results, overall and per class, the
confusions and the prediction for each picture are written to a folder. Several workers run on Ray, as with
jobs/train.py, and give the same results. --source evaluates unsharded pictures in class folders (PHOTOS/CLASS/*.jpg)
of some or all of the run's classes. The last line gives the result: `top-1 92.34 %  top-5 99.80 %  n=10000`.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from jobs.bootstrap import prepare

    prepare("evaluate")

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from cluster.worker.evaluation_options import Crops, UnknownClasses
from pipeline.command import InputError, run_command
from pipeline.json_answer import JsonTarget, completed, json_answer


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `jobs/evaluate.py`."""

    data: Path | None = None
    """Dataset folder. Default: the one that the run was trained on."""
    source: Path | None = None
    """Pictures of your own instead: class folders, named by the run's wnids or class names, or another source that
    pipeline.shard reads."""
    unknown_classes: UnknownClasses = "refuse"
    """Classes of the source that the run was not trained on: `refuse`, or `skip` and count them."""
    ignore: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Pattern of paths or names in the source to leave out. May be repeated."""
    run: Path | None = None
    """Run folder. Default: that of the embedded default."""
    split: str | None = None
    """Split to evaluate on. Default: test if it exists, else val; for a source, its only split."""
    crops: Crops = "centre"
    """Part of a picture that the model sees: the centre crop, or ten crops whose probabilities are averaged."""
    out: Path | None = None
    """Folder to write to. Default: RUN/evaluations/SPLIT-CROPS; for a source, RUN/evaluations/source-NAME-CROPS or,
    with --split, source-NAME-SPLIT-CROPS."""
    workers: int = 1
    """Number of workers; 1 runs in this process, more run on Ray."""
    cpus_per_worker: float | None = None
    """CPUs per worker on Ray. Default: as many as the nodes have."""
    json: JsonTarget = None
    """File to write the result to as JSON; without a file, standard output."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    arguments = tyro.cli(Arguments, args=completed(argv), description=__doc__)
    # Imported here: the command's help needs neither torch nor DALI, which take seconds to load.
    from jobs.evaluation import evaluate_dataset, evaluate_source

    if arguments.source is not None:
        with json_answer(arguments.json, arguments.source, arguments.run) as answer:
            answer(evaluate_source(arguments, arguments.source))
        return 0
    if arguments.ignore or arguments.unknown_classes != "refuse":
        raise InputError("--ignore and --unknown-classes are for --source; leave them out")
    if arguments.data is not None and arguments.run is None:
        raise InputError("--run is missing: name the run to evaluate; without --data too, it is the embedded default's")
    if arguments.workers < 1:
        raise InputError(f"--workers is {arguments.workers}; it must be at least 1")
    with json_answer(arguments.json, arguments.data, arguments.run) as answer:
        answer(evaluate_dataset(arguments))
    return 0


if __name__ == "__main__":
    run_command(main)
