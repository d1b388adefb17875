"""Train a recipe on a dataset, on Ray: a local one of its own, or the cluster that this job was submitted to.

    python jobs/train.py --data DATASET --run RUN --recipe small_demo
    ray job submit --working-dir . -- python jobs/train.py --data DATASET --run RUN --workers 2

The run folder is the run's identity: the same command goes on where a run stopped. Fields of the recipe are
overridden by their dotted names, e.g. `--optimizer.learning-rate 0.02`. Without --data and --run: the demo recipe on
the embedded default.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Run as a file, the checkout is not on the path but this folder is, where every job would hide a module of its
    # name.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from jobs.bootstrap import check_interpreter

    check_interpreter()

import argparse
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from cluster.config import TrainingConfig
from cluster.footprint import training_requirements
from cluster.metrics import Follower
from cluster.micro_batches import check_micro_batch_size
from cluster.placement import place_workers
from cluster.ray_launch import alive_nodes, launch, training_session
from cluster.ray_preflight import check_nodes
from cluster.run_folder import RunFolder
from cluster.training import check_fits, train
from jobs.recipes import get_recipe
from pipeline import embedded
from pipeline.command import InputError, run_command
from pipeline.dataset import Dataset
from pipeline.manifest import DATASET_JSON
from pipeline.paths import shared_path
from pipeline.shard import main as shard

_DEFAULT_RECIPE = "small_demo"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `jobs/train.py`, but for the recipe's own fields."""

    data: Path | None = None
    """Dataset folder. Default: the embedded synthetic mini-ImageNet."""
    run: Path | None = None
    """Run folder. Default, on the embedded dataset: a folder in the user's cache."""
    recipe: str = _DEFAULT_RECIPE
    """Name of the recipe."""
    workers: int | None = None
    """Number of workers. Default: one per GPU; without GPUs one per node."""
    cpus_per_worker: float | None = None
    """CPUs of each worker. Default: as many as the nodes have."""
    micro_batch_size: int | None = None
    """Most samples that a worker takes through the model at once, where memory is short; gradients are added up.
    Default: its whole share of the global batch."""
    dry_run: bool = False
    """Check everything, each node too, say what would be done, and end without beginning a run."""


@dataclass(frozen=True, kw_only=True)
class _Command:
    arguments: Annotated[Arguments, tyro.conf.arg(name="")]
    config: Annotated[TrainingConfig, tyro.conf.arg(name="")]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    arguments, config = _parse(argv)
    if arguments.workers is not None and arguments.workers < 1:
        raise InputError(f"--workers is {arguments.workers}; it must be at least 1")
    if arguments.micro_batch_size is not None:
        check_micro_batch_size(arguments.micro_batch_size, config.model.group_size)
    data, run_path = _paths(arguments)
    dataset = Dataset.open(data)
    check_fits(config, dataset, arguments.workers or 1)
    run = RunFolder.resume(run_path, config, dataset)
    if run is not None and run.result is not None:
        sys.stdout.write(f"{run_path} is finished already: {_evaluate_hint(data, run_path)}\n")
        return 0
    with training_session() as is_local:
        placement = place_workers(alive_nodes(), arguments.workers, arguments.cpus_per_worker)
        check_fits(config, dataset, placement.num_workers)
        check_nodes(training_requirements(config, dataset, run_path), placement, is_local)
        total_steps = config.total_steps(dataset.num_samples("train"))
        sys.stdout.write(
            f"{'would train' if arguments.dry_run else 'training'} {config.name} ({config.model.name}) on {data}: "
            f"{dataset.num_samples('train'):,} samples, {dataset.num_classes} classes, {total_steps:,} steps of "
            f"{config.global_batch_size}\n"
            f"{placement} on {'a local Ray' if is_local else 'the cluster'}; run folder {run_path}\n"
        )
        sys.stdout.flush()
        if arguments.dry_run:
            return 0
        run = run or RunFolder.create(run_path, config, dataset)
        with Follower(run.metrics_path, total_steps):
            work = functools.partial(train, data, run_path, micro_batch_size=arguments.micro_batch_size)
            launch(work, placement, run_path.name)
    sys.stdout.write(f"finished: {_evaluate_hint(data, run_path)}\n")
    return 0


def _parse(argv: Sequence[str] | None) -> tuple[Arguments, TrainingConfig]:
    """Parse in two passes: the recipe's name decides the defaults of all other fields."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe", default=_DEFAULT_RECIPE)
    config = get_recipe(first.parse_known_args(argv)[0].recipe)
    default = _Command(arguments=Arguments(), config=config)
    try:
        command = tyro.cli(_Command, args=argv, default=default, description=__doc__)
    except ValueError as error:  # of the recipe's own fields; tyro itself reports those of its parts
        raise InputError(str(error)) from error
    return command.arguments, command.config


def _paths(arguments: Arguments) -> tuple[Path, Path]:
    """Return dataset and run folder; without --data, those of the embedded default."""
    if arguments.data is not None:
        if arguments.run is None:
            raise InputError("--run is missing: name the folder that the run is to live in")
        return shared_path(arguments.data, "--data"), shared_path(arguments.run, "--run")
    data = embedded.dataset_folder()
    sys.stdout.write(f"no --data given: training on the embedded synthetic mini-ImageNet in {data}\n")
    sys.stdout.flush()
    if not (data / DATASET_JSON).exists():
        shard([])
    return data, shared_path(arguments.run, "--run") if arguments.run else embedded.run_folder()


def _evaluate_hint(data: Path, run_path: Path) -> str:
    return f"python jobs/evaluate.py --data {data} --run {run_path}"


if __name__ == "__main__":
    run_command(main)
