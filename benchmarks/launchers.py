"""Train the same run alone, under torchrun and on Ray Train, and compare the speeds.

The runs train `alexnet_small` on 32-pixel crops of the embedded dataset. Alone, one process has all cores; otherwise,
two workers have one core each. The steps after the first twenty are timed, by the run's own log: no start-up, no
evaluation.

Ray has a dozen processes besides the workers. They do little, but on a two-core machine they do it on the workers'
cores, even while no job runs. So torchrun is also timed beside an idle Ray; the remaining difference is the cost of Ray
Train and this project's launcher.
"""

import contextlib
import itertools
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tyro

from benchmarks.record import Comparison, publish, record_document, run_rounds
from benchmarks.training_runs import Launcher, images_per_second, run_training
from cluster.lab.local_ray import local_ray
from pipeline import embedded
from pipeline.command import run_command
from pipeline.dataset import Dataset

_GLOBAL_BATCH_SIZE = 96
_FIRST_STEP = 20
_ALONE, _TORCHRUN, _BESIDE, _RAY = (
    "alone",
    "torchrun, 2 workers",
    "torchrun, 2 workers, beside an idle Ray",
    "Ray Train, 2 workers",
)
_ALTERNATIVES: dict[str, tuple[Launcher, int]] = {
    _ALONE: ("alone", 1),
    _TORCHRUN: ("torchrun", 2),
    _BESIDE: ("torchrun", 2),
    _RAY: ("Ray", 2),
}
_QUANTITIES = {"images_per_second": "over all workers, from the log's line of step 20 to its last"}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `python -m benchmarks.launchers`."""

    rounds: int = 5
    """Runs of each alternative."""
    steps: int = 200
    """Steps per run, at least 40."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    folder = Path(tempfile.mkdtemp(prefix="launchers-"))
    numbers = itertools.count()
    try:
        values = run_rounds(
            {
                name: partial(_measure, *case, name == _BESIDE, folder, numbers, arguments.steps)
                for name, case in _ALTERNATIVES.items()
            },
            arguments.rounds,
        )
    finally:
        shutil.rmtree(folder)
    publish(
        record_document(
            name="launchers",
            command=f"python -m benchmarks.launchers --rounds {arguments.rounds} --steps {arguments.steps}",
            corpus="the embedded synthetic mini-ImageNet",
            quantities=_QUANTITIES,
            values=values,
            comparisons=[
                Comparison(of=_RAY, quantity="images_per_second", to=_TORCHRUN, at_least=0.94),
                Comparison(of=_RAY, quantity="images_per_second", to=_BESIDE, at_least=0.94),
                Comparison(of=_TORCHRUN, quantity="images_per_second", to=_ALONE),
            ],
            packages=["torch", "ray"],
        )
    )
    return 0


def _measure(
    launcher: Launcher, num_workers: int, with_ray: bool, folder: Path, numbers: Iterator[int], num_steps: int
) -> Mapping[str, float]:
    num_samples = Dataset.open(embedded.dataset_folder()).num_samples("train")
    options = ["--data", str(embedded.dataset_folder()), "--recipe", "small_demo", "--precision", "float32"]
    options += ["--global-batch-size", str(_GLOBAL_BATCH_SIZE), "--evaluations-per-epoch", "0.01"]
    options += ["--augmentation.crop-size", "32", "--stuck-after-epochs", "100"]  # a few steps teach little
    options += ["--num-epochs", str(num_steps * _GLOBAL_BATCH_SIZE / num_samples)]
    with local_ray() if with_ray else contextlib.nullcontext():
        run = run_training(launcher, num_workers, folder / str(next(numbers)), options)
    return {"images_per_second": images_per_second(run, _FIRST_STEP)}


if __name__ == "__main__":
    run_command(main)
