"""Evaluate a run's model: each picture of a split exactly once, centre crop.

    python jobs/evaluate.py --data DATASET --run RUN

The model is the best by `val`, or the last where the dataset has no `val`. The last line gives the result:
`top-1 92.34 %  top-5 99.80 %  n=10000`.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from jobs.bootstrap import check_interpreter

    check_interpreter()

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import tyro

from cluster.evaluation import evaluate
from cluster.precision import input_dtype
from cluster.run_folder import RunFolder
from cluster.training import check_images_fit
from cluster.world import World
from model.alexnet import build_model
from pipeline import embedded
from pipeline.command import InputError, run_command
from pipeline.dataset import Dataset
from pipeline.paths import shared_path


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `jobs/evaluate.py`."""

    data: Path | None = None
    """Dataset folder. Default: the embedded synthetic mini-ImageNet."""
    run: Path | None = None
    """Run folder. Default: that of the embedded default."""
    split: str | None = None
    """Split to evaluate on. Default: test where there is one, else val."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    if (arguments.data is None) != (arguments.run is None):
        raise InputError("--data and --run go together; without both, the embedded default is evaluated")
    data = shared_path(arguments.data or embedded.dataset_folder(), "--data")
    run = RunFolder.open(shared_path(arguments.run or embedded.run_folder(), "--run"))
    dataset = Dataset.open(data)
    run.check_classes(dataset)
    check_images_fit(run.config, dataset)
    split = arguments.split or ("test" if "test" in dataset.splits else "val")
    state = run.checkpoints.load_best() or run.checkpoints.load_latest()
    if state is None:
        raise InputError(f"{run.path} has no checkpoint yet; train it first: jobs/train.py")
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    config = run.config
    model = build_model(**dataclasses.asdict(config.model), num_classes=dataset.num_classes, seed=config.seed)
    model.load_state_dict(state["model"])
    model.to(device, input_dtype(config.precision))
    model.to(memory_format=torch.channels_last)
    result = evaluate(model, dataset, split, World(0, 1, device), run)
    sys.stdout.write(
        f"{config.name} ({config.model.name}) after step {state['step']}, on {split} of {data}: "
        f"loss {result.loss:.4f}\n"
        f"top-1 {result.top1 * 100:.2f} %  top-5 {result.top5 * 100:.2f} %  n={result.num_samples}\n"
    )
    return 0


if __name__ == "__main__":
    run_command(main)
