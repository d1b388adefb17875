"""Train a recipe on a dataset, on Ray: a local one of its own, or the cluster that this job was submitted to.

    python jobs/train.py --data DATASET --run RUN --recipe small_demo
    ray job submit --working-dir . -- python jobs/train.py --data DATASET --run RUN --workers 2:8
    torchrun --nproc-per-node 2 -- jobs/train.py --data DATASET --run RUN

On Ray a run goes on when workers or nodes are lost; with `2:8` it takes as many workers as the cluster holds at the
moment, at least 2. Under torchrun, or with `--launcher alone`, Ray is not used. The run folder is the run's identity:
the same command goes on where a run stopped. Fields of the recipe are overridden by their dotted names, e.g.
`--optimizer.learning-rate 0.02`. Without --data and --run: the recipe `synthetic_demo` on the embedded default.
"""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    # Run as a file, the checkout is not on the path but this folder is, where every job would hide a module of its
    # name.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from jobs import bootstrap

    bootstrap.check_interpreter()
    if "TORCHELASTIC_RUN_ID" in os.environ or any(word.startswith("--launcher") for word in sys.argv):
        from cluster.worker.allocator import restart_with_tuned_allocator

        restart_with_tuned_allocator()  # this process computes; on Ray its workers do

import argparse
import contextlib
import functools
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import tyro

from cluster.launch.footprint import training_requirements
from cluster.launch.placement import Strategy, WorkerRange, place_workers
from cluster.launch.supervisor import supervise
from cluster.launch.torch_launch import here, is_under_torchrun
from cluster.run.config import Precision, TrainingConfig
from cluster.run.follower import Follower
from cluster.run.run_folder import RunFolder, open_launches, stop_request_of
from cluster.run.run_log import Changed, Launched, RunLog
from cluster.worker.emulation import Emulation
from cluster.worker.micro_batches import check_micro_batch_size
from cluster.worker.precision import choose_precision, emulations_of_all
from cluster.worker.training import check_fits, train
from cluster.worker.world import World
from jobs.bootstrap import RAY, check_interpreter
from jobs.recipes import get_recipe
from pipeline import embedded
from pipeline.command import InputError, run_command
from pipeline.dataset import Dataset
from pipeline.format.manifest import DATASET_JSON
from pipeline.paths import shared_path
from pipeline.shard import main as shard

_DEFAULT_RECIPE, _EMBEDDED_RECIPE = "small_demo", "synthetic_demo"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command line of `jobs/train.py`, but for the recipe's own fields."""

    data: Path | None = None
    """Dataset folder. Default: the embedded synthetic mini-ImageNet."""
    run: Path | None = None
    """Run folder. Default, on the embedded dataset: a folder in the user's cache."""
    recipe: str | None = None
    """Name of the recipe. Default: small_demo; on the embedded dataset synthetic_demo."""
    launcher: Literal["ray", "torch", "alone"] | None = None
    """Who starts the workers: `ray`; `torch`, which is torchrun, in one of whose processes this is; or nobody: `alone`,
    this process is the only one. Default: `torch` under torchrun, else `ray`."""
    workers: str | None = None
    """Number of workers on Ray, or a least and a most (2:8). Default: one per GPU; without GPUs one per node."""
    cpus_per_worker: float | None = None
    """CPUs of each worker on Ray. Default: as many as the nodes have."""
    placement: Strategy = "pack"
    """How Ray places the workers: `pack` fills a node before the next, `spread` gives each node its share."""
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
    workers = None if arguments.workers is None else WorkerRange.parse(arguments.workers)
    if arguments.micro_batch_size is not None:
        check_micro_batch_size(arguments.micro_batch_size, config.model.group_size)
    launcher = arguments.launcher or ("torch" if is_under_torchrun() else "ray")
    if launcher == "ray":
        _train_on_ray(arguments, config, workers)
    elif workers is not None or arguments.cpus_per_worker is not None:
        raise InputError(f"--workers and --cpus-per-worker are for Ray, not for --launcher {launcher}; leave them out")
    else:
        _train_here(arguments, config, launcher)
    return 0


def _train_on_ray(arguments: Arguments, config: TrainingConfig, workers: WorkerRange | None) -> None:
    check_interpreter(RAY)  # here: the other launchers need no Ray
    from cluster.launch.ray_launch import RayCluster, training_session
    from cluster.launch.ray_node_checks import FitNodes

    job = _Job.prepare(arguments, config, 1 if workers is None else workers.least)
    if job.is_finished():
        return
    requirements = training_requirements(config, job.dataset, job.run_path)
    takes_all = workers is None  # nodes, the slow ones too
    prefers_native = job.computes_in_bfloat16 and not takes_all
    with training_session() as is_local, FitNodes(requirements, is_local, prefers_native=prefers_native) as fit_nodes:
        allowed = _allowed(workers, config, arguments)
        place = functools.partial(
            place_workers, workers=allowed, requested_cpus=arguments.cpus_per_worker, strategy=arguments.placement
        )
        placement = fit_nodes.place(place, needs_all=takes_all)
        job = job.in_precision(fit_nodes.emulations(placement))
        if job.computes_in_bfloat16 and not takes_all:
            fit_nodes.prefer_native()
        job.announce(f"{placement} on {'a local Ray' if is_local else 'the cluster'}", placement.num_workers)
        if job.is_dry:
            return
        work = functools.partial(train, job.data, job.run_path, micro_batch_size=arguments.micro_batch_size)
        stop_request = stop_request_of(job.run_path)
        cluster = RayCluster(work, job.run_path.name, job.run_path, fit_nodes, stop_request)
        with job.begun() as (run, log):
            supervise(run, log, cluster, place, allowed.most)
    job.say_finished()


def _train_here(arguments: Arguments, config: TrainingConfig, launcher: Literal["torch", "alone"]) -> None:
    with here(launcher) as (world, signals):
        emulations = emulations_of_all(world) if config.may_be_bfloat16 else []
        if not world.is_first:
            world.wait_for_all()  # until the dataset and the run folder are there
        job = _Job.prepare(arguments, config, world.world_size, is_quiet=not world.is_first)
        if not world.is_first:
            if job.run is not None and job.run.result is None and not job.is_dry:
                train(job.data, job.run_path, world, arguments.micro_batch_size)
                if job.run.result is None:
                    signals.raise_first()
            return
        if not (is_finished := job.is_finished()):
            job = job.in_precision(emulations)
            job.announce(_describe_here(world), world.world_size)
        if is_finished or job.is_dry:
            world.wait_for_all()
            return
        with job.begun() as (run, log):
            world.wait_for_all()
            log.write(Launched(num_workers=world.world_size))
            train(job.data, job.run_path, world, arguments.micro_batch_size)
        if run.result is None:
            signals.raise_first()
        job.say_finished()


def _allowed(workers: WorkerRange | None, config: TrainingConfig, arguments: Arguments) -> WorkerRange:
    """Return how many workers the run may have at any time; without a wish, as many as the cluster holds now."""
    from cluster.launch.ray_node_checks import settled_nodes

    num_groups = config.global_batch_size // config.model.group_size  # more workers would have nothing to do
    if workers is None:
        usual = min(num_groups, place_workers(settled_nodes(), None, arguments.cpus_per_worker).num_workers)
        return WorkerRange(usual, usual)
    return WorkerRange(workers.least, max(workers.least, min(workers.most, num_groups)))


def _describe_here(world: World) -> str:
    return "1 worker, alone" if world.world_size == 1 else f"{world.world_size} workers of torchrun"


@dataclass(frozen=True)
class _Job:
    """What is to be trained, on what, where to.

    Attributes:
        requested: The recipe, as it was asked for.
        config: The same with its precision resolved, as soon as that is known.
        data: The dataset's folder, as all workers see it.
        dataset: Opened.
        run_path: The run's folder, as all workers see it.
        run: What it holds already, or None.
        is_dry: Nothing is to begin.
        reason: Why the precision is what it is, where that needs saying.
        is_emulated: Some device emulates that precision.
    """

    requested: TrainingConfig
    config: TrainingConfig
    data: Path
    dataset: Dataset
    run_path: Path
    run: RunFolder | None
    is_dry: bool
    reason: str = ""
    is_emulated: bool = False

    @classmethod
    def prepare(cls, arguments: Arguments, config: TrainingConfig, num_workers: int, is_quiet: bool = False) -> "_Job":
        """Find the dataset, and what the run folder holds; check that all fits."""
        data, run_path = _paths(arguments, is_quiet)
        dataset = Dataset.open(data)
        check_fits(config, dataset, num_workers)
        return cls(
            config, config, data, dataset, run_path, RunFolder.resume(run_path, config, dataset), arguments.dry_run
        )

    @property
    def total_steps(self) -> int:
        """The run's length."""
        return self.config.total_steps(self.dataset.num_samples("train"))

    def is_finished(self) -> bool:
        """Return whether nothing is left to do, and say so."""
        if self.run is None or self.run.result is None:
            return False
        sys.stdout.write(f"{self.run_path} is finished already: {self._evaluate_hint()}\n")
        return True

    @property
    def recorded_precision(self) -> Precision | None:
        """That of the run that goes on; None: it begins."""
        return None if self.run is None else self.run.config.precision

    @property
    def computes_in_bfloat16(self) -> bool:
        """True where it is certain that the run computes in bfloat16."""
        return "bfloat16" in (self.config.precision, self.recorded_precision)

    def in_precision(self, emulations: Sequence[Emulation]) -> "_Job":
        """Return the job with its precision resolved, and warn where a device emulates it.

        Args:
            emulations: Of bfloat16, on devices that may get a worker.
        """
        choice = choose_precision(self.config.precision, self.recorded_precision, emulations)
        for line in choice.warnings:
            sys.stderr.write(f"warning: {line}\n")
        config = replace(self.config, precision=choice.precision)
        return replace(self, config=config, reason=choice.reason, is_emulated=bool(choice.warnings))

    def announce(self, workers: str, num_workers: int) -> None:
        """Say what begins, or would begin."""
        check_fits(self.config, self.dataset, num_workers)
        reason = f" ({self.reason})" if self.reason else ""
        sys.stdout.write(
            f"{'would train' if self.is_dry else 'training'} {self.config.name} ({self.config.model.name}) in "
            f"{self.config.precision}{reason} on {self.data}: {self.dataset.num_samples('train'):,} samples, "
            f"{self.dataset.num_classes} classes, {self.total_steps:,} steps of {self.config.global_batch_size}\n"
            f"{workers}; run folder {self.run_path}\n"
        )
        sys.stdout.flush()

    @contextlib.contextmanager
    def begun(self) -> Iterator[tuple[RunFolder, RunLog]]:
        """Take the run for this command alone, create its folder if it is new, and show its log as it grows.

        Yields:
            The run and the log of its launches, whose lock is held.
        """
        with contextlib.closing(open_launches(self.run_path)) as log:
            # Once more, under the lock: another command may have begun a run here meanwhile.
            run = RunFolder.resume(self.run_path, self.requested, self.dataset)
            if run is None:
                run = RunFolder.create(self.run_path, self.config, self.dataset)
            elif changes := run.changes_to(self.requested):
                log.write(Changed(changes=changes))
                run.operate_as(self.requested)
                sys.stdout.writelines(f"{name} {old} -> {new} from here on\n" for name, (old, new) in changes.items())
            with Follower(run.metrics_path, self.total_steps, self._advice()):
                yield run, log

    def _advice(self) -> str:
        """Return what would shorten the run: on the way, or in another one."""
        more = "a GPU, or more or faster nodes"
        others = [f"fewer epochs (--num-epochs, now {self.config.num_epochs:g})"]
        others += ["fewer pictures (pipeline.shard --max-train-samples)"]
        if self.is_emulated:
            others.insert(0, "--precision float32")
        return f"{more}; or, in a new --run, with {' or '.join(others)}"

    def say_finished(self) -> None:
        """Say that the run is finished, and what comes next."""
        sys.stdout.write(f"finished: {self._evaluate_hint()}\n")

    def _evaluate_hint(self) -> str:
        return shlex.join(["python", "jobs/evaluate.py", "--data", str(self.data), "--run", str(self.run_path)])


def _parse(argv: Sequence[str] | None) -> tuple[Arguments, TrainingConfig]:
    """Parse in two passes: the recipe's name decides the defaults of all other fields."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe")
    first.add_argument("--data")
    known = first.parse_known_args(argv)[0]
    config = get_recipe(known.recipe or (_EMBEDDED_RECIPE if known.data is None else _DEFAULT_RECIPE))
    default = _Command(arguments=Arguments(), config=config)
    try:
        command = tyro.cli(_Command, args=argv, default=default, description=__doc__)
    except ValueError as error:  # of the recipe's own fields; tyro itself reports those of its parts
        raise InputError(str(error)) from error
    return command.arguments, command.config


def _paths(arguments: Arguments, is_quiet: bool = False) -> tuple[Path, Path]:
    """Return dataset and run folder; without --data, those of the embedded default."""
    if arguments.data is not None:
        if arguments.run is None:
            raise InputError("--run is missing: name the folder that the run is to live in")
        return shared_path(arguments.data, "--data"), shared_path(arguments.run, "--run")
    data = embedded.dataset_folder()
    if not is_quiet:
        sys.stdout.write(f"no --data given: training on the embedded synthetic mini-ImageNet in {data}\n")
        sys.stdout.flush()
    if not (data / DATASET_JSON).exists():
        shard([])
    return data, shared_path(arguments.run, "--run") if arguments.run else embedded.run_folder()


if __name__ == "__main__":
    run_command(main)
