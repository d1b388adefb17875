"""Train the same run on 1, 2, 3 and 5 workers, and compare the samples and the loss of each step.

The runs train `alexnet_small` on 32-pixel crops of the embedded dataset, with dropout and every augmentation, and with
a global batch size of 96, which 5 does not divide. Each run is compared with the run on one worker in the same
precision. With --figure, the deviations are drawn step by step.
"""

import itertools
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro

from benchmarks.record import Comparison, Values, publish, record_document, run_rounds
from benchmarks.training_runs import losses, run_training
from cluster.run.run_folder import RunFolder
from pipeline import embedded
from pipeline.command import run_command
from pipeline.dataset import Dataset

_GLOBAL_BATCH_SIZE = 96
_WORLD_SIZES = (1, 2, 3, 5)
_PRECISIONS = ("float64", "float32")
_QUANTITIES = {
    "different_sample_ids": "of all steps, by the runs' ledgers, position by position",
    "largest_loss_deviation": "of a step's loss from that of one worker, relative, over all steps",
    "last_loss_deviation": "the same of the last step",
    "largest_weight_deviation": "of a tensor of the final weights, norm of the difference to norm",
}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `python -m benchmarks.world_size`."""

    steps: int = 200
    """Steps per run."""
    figure: Path | None = None
    """PNG file for a figure of the deviations."""


class _Runs:
    """The runs made so far; the first run of each precision is the one on one worker."""

    def __init__(self, folder: Path, num_steps: int) -> None:
        self._folder, self._num_steps = folder, num_steps
        self.deviations_S: dict[tuple[str, int], np.ndarray] = {}

    def measure(self, precision: str, world_size: int) -> dict[str, float]:
        """Train, and return the deviations from the run on one worker."""
        num_samples = Dataset.open(embedded.dataset_folder()).num_samples("train")
        options = ["--recipe", "small_demo", "--precision", precision, "--evaluations-per-epoch", "0.01"]
        options += ["--data", str(embedded.dataset_folder()), "--global-batch-size", str(_GLOBAL_BATCH_SIZE)]
        options += [
            "--augmentation.crop-size",
            "32",
            "--optimizer.learning-rate",
            "0.01",
            "--stuck-after-epochs",
            "100",
        ]
        options += ["--num-epochs", str(self._num_steps * _GLOBAL_BATCH_SIZE / num_samples)]
        launcher = "alone" if world_size == 1 else "torchrun"
        run = run_training(launcher, world_size, self._folder / f"{precision}-{world_size}", options)
        reference = RunFolder.open(self._folder / f"{precision}-1")
        mine, theirs = np.array(losses(run)), np.array(losses(reference))
        deviations_S = np.abs(mine - theirs) / theirs
        self.deviations_S[precision, world_size] = deviations_S
        return {
            "different_sample_ids": float((_ids(run) != _ids(reference)).sum()),
            "largest_loss_deviation": float(deviations_S.max()),
            "last_loss_deviation": float(deviations_S[-1]),
            "largest_weight_deviation": _weight_deviation(run, reference),
        }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    folder = Path(tempfile.mkdtemp(prefix="world-size-"))
    try:
        runs = _Runs(folder, arguments.steps)
        cases = list(itertools.product(_PRECISIONS, _WORLD_SIZES))
        values = run_rounds({_label(*case): partial(runs.measure, *case) for case in cases}, rounds=1)
    finally:
        shutil.rmtree(folder)
    if arguments.figure is not None:
        _draw(runs, arguments.figure)
    publish(_document(values, arguments))
    return 0


def _document(values: Values, arguments: Arguments) -> dict[str, object]:
    others = [world_size for world_size in _WORLD_SIZES if world_size > 1]
    bounds = {"different_sample_ids": 0.0, "largest_loss_deviation": 1e-8}
    return record_document(
        name="world_size",
        command=f"python -m benchmarks.world_size --steps {arguments.steps}",
        corpus="the embedded synthetic mini-ImageNet",
        quantities=_QUANTITIES,
        values=values,
        comparisons=[
            *(
                Comparison(of=_label("float64", world_size), quantity=quantity, at_most=bound)
                for world_size in others
                for quantity, bound in bounds.items()
            ),
            *(
                Comparison(of=_label("float32", world_size), quantity="different_sample_ids", at_most=0.0)
                for world_size in others
            ),
        ],
        packages=["torch", "numpy"],
    )


def _label(precision: str, world_size: int) -> str:
    return f"{precision}, {world_size} worker{'s' * (world_size > 1)}"


def _ids(run: RunFolder) -> np.ndarray:
    return np.concatenate([steps.sample_ids_SG for steps in run.ledger.read()])


def _weight_deviation(run: RunFolder, reference: RunFolder) -> float:
    mine, theirs = (r.checkpoints.load_latest() for r in (run, reference))
    assert mine is not None and theirs is not None
    pairs = [(mine["model"][name].double(), weights.double()) for name, weights in theirs["model"].items()]
    return max(float(torch.linalg.norm(left - right) / torch.linalg.norm(right)) for left, right in pairs)


def _draw(runs: _Runs, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(_PRECISIONS), figsize=(11, 4), sharey=True, layout="constrained")
    for axis, precision in zip(axes, _PRECISIONS, strict=True):
        for world_size in _WORLD_SIZES[1:]:
            deviations_S = runs.deviations_S[precision, world_size]
            steps = np.arange(1, len(deviations_S) + 1)
            axis.semilogy(steps, np.maximum(deviations_S, 1e-17), label=f"{world_size} workers", linewidth=1)
        axis.set(title=precision, xlabel="step", ylim=(1e-17, 1e1))
        axis.grid(alpha=0.3)
    axes[0].axhline(1e-8, color="black", linestyle="--", linewidth=1, label="bound in float64")
    axes[0].set_ylabel("relative deviation of the loss from that of one worker")
    axes[0].legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    run_command(main)
