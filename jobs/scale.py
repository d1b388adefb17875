"""Measure how training scales: a step on several numbers of workers, batches, models, exchanges and links.

    python jobs/scale.py --out OUT --experiment small_trial
    python jobs/scale.py --out OUT --workers 1 2 4 --global-batch-sizes 32 --links 0.25 1 4 --cpus-per-worker 0.45
    ray job submit --working-dir . -- python jobs/scale.py --out OUT --workers 2 4 8 --batch-sizes-per-worker 128

Each combination is a cell. A block measures all cells once, in a random order, with one launch per number of workers;
blocks are the repeats. Beside each exchange, the same step without any is measured. With --links, --like or
--cpus-per-worker, each worker runs on a host of its own, made of a network namespace on this machine, by root. Without,
they run on Ray: a local one, or the cluster that this job was submitted to. The table of all whole blocks is
OUT/scaling.parquet. The same command goes on where it was stopped; more --blocks may be asked for.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from jobs.bootstrap import prepare

    prepare("scale")

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from cluster.scaling.experiment import Experiment
from jobs.experiments import get_experiment
from pipeline.command import InputError, run_command


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `jobs/scale.py`, except for the experiment's own fields."""

    out: Path
    """Folder of the experiment."""
    experiment: str | None = None
    """Name of an experiment in jobs/experiments.py, whose fields the other options override."""
    data: tuple[Path, ...] = ()
    """Dataset folders for the loader `real`, of different encodings."""
    on: Literal["hosts", "ray"] | None = None
    """Where workers run: `hosts`, a network namespace each on this machine, by root; or `ray`. Default: `hosts` if
    links are shaped or CPUs limited, else `ray`."""
    dry_run: bool = False
    """Print the cells and the time that they will take, and end."""


@dataclass(frozen=True, kw_only=True)
class _Command:
    arguments: Annotated[Arguments, tyro.conf.arg(name="")]
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    arguments, experiment = _parse(argv)
    # Imported here: the command's help needs neither torch nor DALI, which take seconds to load.
    from jobs.scaling.sweep import scale

    return scale(arguments, experiment)


def _parse(argv: Sequence[str] | None) -> tuple[Arguments, Experiment]:
    """Parse in two passes, since the fields' defaults depend on the experiment, and on what replaces its links."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--experiment")
    first.add_argument("--like")
    first.add_argument("--links", nargs="*")
    known = first.parse_known_args(argv)[0]
    default = Experiment() if known.experiment is None else get_experiment(known.experiment)
    if known.like is not None:
        default = dataclasses.replace(default, links=())
    elif known.links is not None:
        default = dataclasses.replace(default, like=None, like_batch=None)
    try:
        command = tyro.cli(
            _Command,
            args=argv,
            default=_Command(arguments=Arguments(out=tyro.MISSING), experiment=default),
            description=__doc__,
        )
    except ValueError as error:  # raised by the experiment's own fields; tyro itself reports errors of its parts
        raise InputError(str(error)) from error
    return command.arguments, command.experiment


if __name__ == "__main__":
    run_command(main)
