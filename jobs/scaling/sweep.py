"""The work of `jobs/scale.py`: check what is declared, say what will be measured, and measure it."""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from cluster.lab.cpu_quota import CpuQuota
from cluster.lab.hosts import check_num_hosts, check_rights
from cluster.lab.scaling_table import counted
from cluster.scaling.cells import Plan, make_plan
from cluster.scaling.experiment import Experiment
from cluster.scaling.folder import SweepFolder
from cluster.scaling.on_hosts import OnHosts, check_cpus
from cluster.scaling.sweep import Place, Sweep
from cluster.scaling.worker import Settings
from jobs.bootstrap import RAY, check_interpreter
from pipeline.command import InputError
from pipeline.dataset import Dataset
from pipeline.online.augmentation import AugmentationConfig
from pipeline.paths import shared_path

if TYPE_CHECKING:
    from jobs.scale import Arguments


_FEWEST_BLOCKS = 3  # for confidence intervals


def scale(arguments: "Arguments", experiment: Experiment) -> int:
    """Run an experiment, or say what it would measure; return the command's exit status."""
    if not experiment.global_batch_sizes and not experiment.batch_sizes_per_worker:
        raise InputError("name batches: --global-batch-sizes for strong scaling, --batch-sizes-per-worker for weak")
    datasets = _datasets(arguments, experiment)
    on = arguments.on or ("hosts" if experiment.needs_hosts else "ray")
    if on == "ray" and experiment.needs_hosts:
        raise InputError("links and CPUs are limited on hosts alone; leave out --links, --like and --cpus-per-worker")
    if on == "hosts":
        check_num_hosts(max(experiment.workers))
    if experiment.cpus_per_worker is not None:
        check_cpus(experiment.workers, experiment.cpus_per_worker)
    folder = SweepFolder(shared_path(arguments.out, "--out"))
    declaration = experiment.to_json() | {
        "on": on,
        "datasets": {encoding: dataset.sha256 for encoding, dataset in sorted(datasets.items())},
    }
    folder.check(declaration)
    num_classes = next(iter(datasets.values())).num_classes if datasets else experiment.num_classes
    sweep = Sweep(experiment, folder, sorted(datasets), num_classes)
    plan = sweep.plan()
    if plan is not None and not plan.cells:
        raise InputError("nothing is left to measure:\n" + "\n".join(plan.left_out))
    is_measured = plan is not None and sweep.is_measured(plan)
    if arguments.dry_run or not is_measured:
        _announce(sweep, plan)
    if arguments.dry_run:
        return 0
    if plan is not None and is_measured:
        with contextlib.closing(folder.begin(declaration)):
            sweep.write_table(plan)
        return _finish(folder, plan, experiment.blocks, "is finished already")
    settings = Settings(
        num_steps=experiment.steps,
        num_warm_up_steps=experiment.warm_up_steps,
        seed=experiment.seed,
        data={encoding: str(dataset.path) for encoding, dataset in datasets.items()},
    )
    with (
        _place(on, experiment, settings, folder, datasets) as place,  # where there is none, nothing is written
        contextlib.closing(folder.begin(declaration)) as log,
    ):
        plan = sweep.run(place, log)
    return _finish(folder, plan, experiment.blocks, "is finished")


@contextlib.contextmanager
def _place(
    on: str, experiment: Experiment, settings: Settings, folder: SweepFolder, datasets: Mapping[str, Dataset]
) -> Iterator[Place]:
    """Yield where the workers run."""
    if on == "hosts":
        check_rights()
        if experiment.cpus_per_worker is not None:
            CpuQuota("trial", experiment.cpus_per_worker).close()
        yield OnHosts(settings, experiment.cpus_per_worker, folder.workers_log)
        return
    check_interpreter(RAY)  # checked here, since hosts need no Ray
    from cluster.scaling.on_ray import on_ray

    with on_ray(settings, folder.path, list(datasets.values()), experiment.workers) as place:
        yield place


def _datasets(arguments: "Arguments", experiment: Experiment) -> dict[str, Dataset]:
    """Return the datasets by their encoding."""
    if ("real" in experiment.loaders) != bool(arguments.data):
        raise InputError("--data and the loader `real` go together: --data DATASET --loaders synthetic real")
    datasets: dict[str, Dataset] = {}
    for path in arguments.data:
        dataset = Dataset.open(shared_path(path, "--data"))
        if dataset.encoding in datasets:
            raise InputError(f"two of --data have the encoding {dataset.encoding}; name one of them")
        datasets[dataset.encoding] = dataset
        for _, image_size in experiment.sized_models:
            try:
                AugmentationConfig(crop_size=image_size).crop_of(dataset.stored_size)
            except ValueError as error:
                raise InputError(f"{path}: {error}") from error
    if len({dataset.num_classes for dataset in datasets.values()}) > 1:
        raise InputError(
            "the datasets of --data have different numbers of classes; name such as differ in encoding alone"
        )
    return datasets


def _announce(sweep: Sweep, plan: Plan | None) -> None:
    """Print the cells, and how long they will take."""
    if plan is None:
        # Which bandwidths they are shows the time of a step without an exchange, and nothing else changes with it.
        plan = make_plan(sweep.experiment, sweep.computations())
        sys.stdout.write("links: found from the computation, which is measured first\n")
    sys.stdout.write("".join(f"{cell}\n" for cell in plan.cells))
    sys.stdout.write("".join(f"left out: {line}\n" for line in plan.left_out))
    if (num_blocks := sweep.experiment.blocks) < _FEWEST_BLOCKS:
        sys.stdout.write(
            f"{counted(num_blocks, 'block')}: confidence intervals need at least {_FEWEST_BLOCKS}; the same command "
            f"with --blocks {_FEWEST_BLOCKS} adds the others\n"
        )
    sys.stdout.write(f"{sweep.estimate(plan)}\n")
    sys.stdout.flush()


def _finish(folder: SweepFolder, plan: Plan, num_blocks: int, is_finished: str) -> int:
    """Say where the table is, and what was refused; return the exit status."""
    cells, blocks = counted(len(plan.cells), "cell"), counted(num_blocks, "block")
    sys.stdout.write(f"{folder.path} {is_finished}: {cells}, {blocks} in {folder.table}\n")
    sys.stdout.flush()
    for line in plan.refused:
        sys.stderr.write(f"warning: {line}; its cells are left out: repeat the command, which tries the link again\n")
    return 1 if plan.refused else 0
