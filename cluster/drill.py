"""Kill drill: SIGKILL of workers, nodes, raylets and the driver of a training run, at random moments, and its proof.

    python -m cluster.drill
    python -m cluster.drill --data DATASET --out OUT --events worker driver --minutes 10

A run of float64 is made twice: on a local Ray of several nodes, where it is hit and at last stopped by `ray job stop`,
and undisturbed, in one process, for as many steps. Both must have trained the same samples in the same order (their
ledgers are equal) and have ended with the same weights; each restart must have begun at a checkpoint, and nothing may
be left running. The table says what each event cost. Status 1 where anything is not so.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from cluster.lab.drill import DrillConfig, run_drill
from pipeline import embedded
from pipeline.command import InputError, run_command
from pipeline.dataset import Dataset
from pipeline.format.manifest import DATASET_JSON


@dataclass(frozen=True, kw_only=True)
class Arguments(DrillConfig):
    """Command line of `python -m cluster.drill`."""

    data: Path | None = None
    """Dataset folder. Default: the embedded synthetic mini-ImageNet, which `python -m pipeline.shard` makes."""
    out: Path | None = None
    """Folder for the two runs and the report. Default: a new one in the user's cache."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    if arguments.data is None and not (embedded.dataset_folder() / DATASET_JSON).exists():
        raise InputError(
            "the embedded dataset is not there yet; make it with `python -m pipeline.shard`, or give --data"
        )
    dataset = Dataset.open((arguments.data or embedded.dataset_folder()).absolute())
    out = (arguments.out or embedded.cache_folder() / "drills" / time.strftime("%Y%m%d-%H%M%S")).absolute()
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    return 1 if run_drill(arguments, dataset, out) else 0


if __name__ == "__main__":
    run_command(main)
