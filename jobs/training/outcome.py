"""What a person should know of a run that has ended: how good it is beside a simple guess, and whether it overfits."""

from collections.abc import Iterator

from cluster.run.curves import read_curves
from cluster.run.overfitting import overfitting, standard_error
from cluster.run.run_folder import RunFolder
from jobs.training.color_baseline import color_baseline
from pipeline.dataset import Dataset


def outcome(run: RunFolder, dataset: Dataset, with_baseline: bool) -> Iterator[str]:
    """Yield lines about a finished run.

    Args:
        run: The run.
        dataset: Dataset that it was trained on.
        with_baseline: Whether to compare it with the nearest mean colour; that reads the pictures once.
    """
    if "val" not in dataset.splits:
        return
    curves, num_val = read_curves(run), dataset.num_samples("val")
    if len(curves.val_top1_errors) and with_baseline:
        top1 = 1 - float(curves.val_top1_errors[-1])
        baseline = color_baseline(dataset)
        yield (
            f"held out, after the last step: top-1 {top1:.1%} of {num_val:,} pictures (standard error "
            f"{standard_error(top1, num_val) * 100:.1f} points); by the nearest mean colour alone {baseline.top1:.1%}"
        )
    yield from overfitting(curves, num_val)
