"""Train `alexnet_2012` at 224 pixels by each exact exchange on 1, 2 and 3 workers, and compare the final weights.

The runs train in float64 on the embedded dataset, whose pictures the model resizes to 224, with dropout, weight decay
and every augmentation; a global batch of 12. Each is compared with the run of one worker.
"""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import tyro

from benchmarks.record import Comparison, publish, record_document, run_rounds
from benchmarks.training_runs import losses, run_training
from cluster.exchange.names import Strategy
from cluster.run.run_folder import RunFolder
from cluster.run.run_log import Started, only, read_metrics
from pipeline import embedded
from pipeline.command import InputError, run_command
from pipeline.dataset import Dataset

_GLOBAL_BATCH_SIZE = 12
_WORLD_SIZES = (2, 3)
_ALONE = "1 worker"
_LARGEST_DEVIATION = 1e-10
_QUANTITIES = {
    "largest_weight_deviation": "largest difference of a weight, relative to the largest weight of its tensor",
    "largest_loss_deviation": "of a step's loss from that of one worker, relative, over all steps",
}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `python -m benchmarks.exchange_exactness`."""

    steps: int = 10
    """Steps per run."""
    model: str = "alexnet_2012"
    """Network to train."""
    size: int = 224
    """Height and width to which the model resizes the pictures."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    folder = Path(tempfile.mkdtemp(prefix="exchange-exactness-"))
    try:
        measure = partial(_measure, arguments, folder)
        cases = {_ALONE: partial(measure, "allreduce", 1)} | {
            _label(strategy, world_size): partial(measure, strategy, world_size)
            for world_size in _WORLD_SIZES
            for strategy in get_args(Strategy)
        }
        values = run_rounds(cases, rounds=1)
    finally:
        shutil.rmtree(folder)
    publish(
        record_document(
            name="exchange_exactness",
            command=f"python -m benchmarks.exchange_exactness --steps {arguments.steps} --model {arguments.model} "
            f"--size {arguments.size}",
            corpus="the embedded synthetic mini-ImageNet",
            quantities=_QUANTITIES,
            values=values,
            comparisons=[
                Comparison(of=name, quantity="largest_weight_deviation", at_most=_LARGEST_DEVIATION)
                for name in cases
                if name != _ALONE
            ],
            packages=["torch", "numpy"],
        )
    )
    return 0


def _measure(arguments: Arguments, folder: Path, strategy: Strategy, world_size: int) -> dict[str, float]:
    """Train, and return the deviations from the run on one worker, which comes first."""
    num_samples = Dataset.open(embedded.dataset_folder()).num_samples("train")
    options = ["--recipe", "krizhevsky_2012", "--precision", "float64", "--optimizer.schedule", "constant"]
    options += ["--data", str(embedded.dataset_folder()), "--global-batch-size", str(_GLOBAL_BATCH_SIZE)]
    options += ["--augmentation.crop-size", "28", "--augmentation.subtract", "mean", "--evaluations-per-epoch", "0.01"]
    options += ["--model.name", arguments.model, "--model.resize-to", str(arguments.size)]
    options += ["--stuck-after-epochs", "100", "--num-epochs", str(arguments.steps * _GLOBAL_BATCH_SIZE / num_samples)]
    launcher = "alone" if world_size == 1 else "torchrun"
    path = folder / _label(strategy, world_size).replace(" ", "-")
    run = run_training(launcher, world_size, path, [*options, "--exchange", strategy])
    (started,) = only(Started, read_metrics(run.metrics_path))
    if started.exchange != strategy:
        raise InputError(f"{arguments.model} on {world_size} workers is trained by {started.exchange}, not {strategy}")
    reference = run if world_size == 1 else RunFolder.open(folder / _ALONE.replace(" ", "-"))
    pairs = zip(losses(run), losses(reference), strict=True)
    return {
        "largest_weight_deviation": _weight_deviation(run, reference),
        "largest_loss_deviation": max(abs(mine - theirs) / theirs for mine, theirs in pairs),
    }


def _label(strategy: Strategy, world_size: int) -> str:
    return _ALONE if world_size == 1 else f"{strategy}, {world_size} workers"


def _weight_deviation(run: RunFolder, reference: RunFolder) -> float:
    mine, theirs = (r.checkpoints.load_latest() for r in (run, reference))
    assert mine is not None and theirs is not None
    pairs = [(mine["model"][name], weights) for name, weights in theirs["model"].items()]
    return max(float((left - right).abs().max() / right.abs().max()) for left, right in pairs)


if __name__ == "__main__":
    run_command(main)
