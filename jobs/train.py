"""Train a recipe on a dataset, on Ray: on its own local one, or on the cluster that this job was submitted to.

    python jobs/train.py --data DATASET --run RUN --recipe small_demo
    python jobs/train.py --source PHOTOS --run RUN
    ray job submit --working-dir . -- python jobs/train.py --data DATASET --run RUN --workers 2:8
    torchrun --nproc-per-node 2 -- jobs/train.py --data DATASET --run RUN

On Ray, a run continues when workers or nodes are lost; with `2:8` it uses as many workers as the cluster currently has
room for, from 2 to 8. Under torchrun, or with `--launcher alone`, Ray is not used. The run folder identifies the run:
the same command continues a run that was stopped. Fields of the recipe are overridden by their dotted names, e.g.
`--optimizer.learning-rate 0.02`. --source trains on pictures of your own in class folders (PHOTOS/CLASS/*.jpg): they
become a dataset beside the run, and the recipe is chosen from their number and size. Without --data and --run,
`synthetic_demo` is trained on the embedded default.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # If this runs as a file, the path has this folder instead of the checkout, and each job here would hide a module
    # with the same name.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from jobs.bootstrap import prepare

    prepare("train")

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import tyro

from cluster.exchange.names import StrategyChoice
from cluster.launch.placement import Strategy, WorkerRange
from cluster.run.config import TrainingConfig
from cluster.worker.options import WorkerOptions
from jobs.bootstrap import RAY, check_interpreter
from jobs.recipes import get_recipe
from model.foreign import is_foreign
from model.registry import ModelConfig
from pipeline.command import InputError, run_command
from pipeline.online.batch import Cache

_DEFAULT_RECIPE, _EMBEDDED_RECIPE, _OWN_RECIPE = "small_demo", "synthetic_demo", "own_pictures"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `jobs/train.py`, except for the recipe's own fields."""

    data: Path | None = None
    """Dataset folder. Default: the embedded synthetic mini-ImageNet; with --source, the folder RUN-data."""
    source: Path | None = None
    """Pictures of your own: class folders, or another source that pipeline.shard reads. They are made into a dataset
    first, in --data."""
    ignore: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Pattern of paths or names in the source to leave out. May be repeated."""
    run: Path | None = None
    """Run folder. Default, on the embedded dataset: a folder in the user's cache."""
    recipe: str | None = None
    """Name of the recipe. Default: small_demo; on the embedded dataset, synthetic_demo; with --source, what fits."""
    launcher: Literal["ray", "torch", "alone"] | None = None
    """What starts the workers: `ray`; `torch`, if torchrun started this process; or nothing: with `alone`, this process
    is the only worker. Default: `torch` under torchrun, else `ray`."""
    workers: str | None = None
    """Number of workers on Ray, or a minimum and a maximum (2:8). Default: one per GPU; without GPUs, one per node."""
    cpus_per_worker: float | None = None
    """CPUs per worker on Ray. Default: as many as the nodes have."""
    placement: Strategy = "pack"
    """Placement of the workers by Ray: `pack` fills one node before the next, `spread` distributes them evenly."""
    micro_batch_size: int | None = None
    """Maximum number of samples per forward pass of a worker, if memory is short; gradients are added up. Default: the
    worker's whole share of the global batch."""
    cache: Cache = "auto"
    """Where a worker keeps decoded training pictures, so that it decodes each once: in the memory of its GPU, in that
    of the host, or nowhere. `auto`: on the GPU if there is one and they take at most half of its free memory."""
    exchange: StrategyChoice = "auto"
    """How workers combine their gradients, without a change of the result: `allreduce`; `factors`, which sends a dense
    layer's inputs and output gradients in place of its gradient; `hybrid`, which shares out the dense layers' weights.
    `auto`: the one with the shortest predicted step on this link. Ways that change the result belong to the recipe
    (--gradient-compression, --local-sgd-steps), and go with `allreduce` alone."""
    tensorboard: bool = False
    """Also write the run's numbers, first samples and first filters for TensorBoard, to RUN/tensorboard."""
    dry_run: bool = False
    """Check everything, including each node, print what would be done, and end without beginning a run."""

    @property
    def worker_options(self) -> WorkerOptions:
        """Options of each worker."""
        return WorkerOptions(micro_batch_size=self.micro_batch_size, cache=self.cache, exchange=self.exchange)


@dataclass(frozen=True, kw_only=True)
class _Command:
    arguments: Annotated[Arguments, tyro.conf.arg(name="")]
    config: Annotated[TrainingConfig, tyro.conf.arg(name="")]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see the module."""
    arguments, config = parse(argv)
    workers = None if arguments.workers is None else WorkerRange.parse(arguments.workers)
    # Imported here: the command's help needs neither torch nor DALI, which take seconds to load.
    from cluster.launch.torch_launch import is_under_torchrun

    arguments.worker_options.check(config)
    launcher = arguments.launcher or ("torch" if is_under_torchrun() else "ray")
    if launcher != "ray" and (workers is not None or arguments.cpus_per_worker is not None):
        raise InputError(f"--workers and --cpus-per-worker are for Ray, not for --launcher {launcher}; leave them out")
    if arguments.source is None and arguments.ignore:
        raise InputError("--ignore is for --source; leave it out")
    if arguments.source is not None:
        if launcher == "torch":
            raise InputError(
                "--source is not for torchrun, whose processes would all make the dataset; make it first: "
                f"python -m pipeline.shard {arguments.source} DATASET"
            )
        arguments, config = _with_own_pictures(argv, arguments, config, 1 if workers is None else workers.least)
        if arguments.data is None:
            return 0
    if launcher == "ray":
        check_interpreter(RAY)  # checked here, since the other launchers need no Ray
        from jobs.training.on_ray import train_on_ray

        train_on_ray(arguments, config, workers)
    else:
        from jobs.training.here import train_here

        train_here(arguments, config, launcher)
    return 0


def _with_own_pictures(
    argv: Sequence[str] | None, arguments: Arguments, config: TrainingConfig, num_workers: int
) -> tuple[Arguments, TrainingConfig]:
    """Make the dataset of --source; return the command line that names it, and the recipe that fits it.

    In a dry run, no dataset is made; if there is none, the command line returned names none.
    """
    from jobs.training.choice import described
    from jobs.training.own_source import OwnSource

    own = OwnSource.find(arguments, config if arguments.recipe is not None else None)
    _, config = parse(argv, own.choice.config)
    own = own.overridden(config)
    own.check(num_workers)
    sys.stdout.write(described(own.pictures, own.choice))
    sys.stdout.flush()
    if arguments.dry_run and not own.has_dataset:
        sys.stdout.write(f"would make the dataset {own.data}, and then train on it\n")
        return replace(arguments, data=None), config
    own.make_dataset()
    return replace(arguments, data=own.data), config


def parse(argv: Sequence[str] | None, recipe: TrainingConfig | None = None) -> tuple[Arguments, TrainingConfig]:
    """Parse in two passes, since the recipe's name decides the defaults of its fields.

    Args:
        argv: Command line.
        recipe: Recipe in place of the one that the command line names.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in ("--recipe", "--data", "--source", "--model.name"):
        first.add_argument(option)
    known = vars(first.parse_known_args(argv)[0])
    usual = _EMBEDDED_RECIPE if known["data"] is None else _DEFAULT_RECIPE
    config = recipe or get_recipe(known["recipe"] or (usual if known["source"] is None else _OWN_RECIPE))
    network = known["model.name"]
    try:
        if network is not None and is_foreign(network) and network != config.model.name:
            # The recipe's switches belong to its own network.
            config = replace(config, model=ModelConfig(name=network))
        default = _Command(arguments=Arguments(), config=config)
        command = tyro.cli(_Command, args=argv, default=default, description=__doc__)
    except ValueError as error:  # raised by the recipe's own fields; tyro itself reports errors of its parts
        raise InputError(str(error)) from error
    return command.arguments, command.config


if __name__ == "__main__":
    run_command(main)
