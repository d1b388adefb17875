"""The work of `jobs/evaluate.py`: evaluate a run's model on a dataset or a user's pictures, and print the result."""

import functools
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.launch.node_checks import Requirements
from cluster.run.fit import check_images_fit
from cluster.run.run_folder import RunFolder
from cluster.worker.evaluation_files import evaluate_run, evaluated_source, foreign_files, read_evaluation
from cluster.worker.evaluation_options import Crops
from cluster.worker.precision import fitting_precision, fitting_precision_here
from cluster.worker.source_evaluation import evaluate_own, named, own_pictures
from cluster.worker.trained_model import default_device
from cluster.worker.world import World
from jobs.bootstrap import RAY, check_interpreter
from model.foreign import announce_file
from pipeline import embedded
from pipeline.command import InputError
from pipeline.dataset import Dataset
from pipeline.paths import shared_path
from pipeline.sources.base import ListingOptions
from pipeline.sources.detect import open_source

if TYPE_CHECKING:
    from jobs.evaluate import Arguments

_NUM_WORST = 5


def evaluate_dataset(arguments: "Arguments") -> dict[str, Any]:
    """Evaluate on a split of a dataset, in this process or on Ray, and print the result.

    Args:
        arguments: Command line.

    Returns:
        The result as a document.
    """
    run = RunFolder.open(shared_path(arguments.run or embedded.run_folder(), "--run"))
    announce_file(run.config.model.name)
    own = embedded.dataset_folder() if arguments.run is None else Path(run.document["dataset"]["path"])
    data = shared_path(arguments.data or own, "--data")
    dataset = Dataset.open(data)
    run.check_classes(dataset)
    check_images_fit(run.config, dataset)
    split = arguments.split or ("test" if "test" in dataset.splits else "val")
    dataset.num_samples(split)  # raises an error if the split does not exist
    out = shared_path(arguments.out or run.evaluations_path / f"{split}-{arguments.crops}", "--out")
    _check_out(out)
    if arguments.workers == 1:
        device = default_device()
        precision = fitting_precision_here(run.config.precision, device)
        evaluate_run(data, run.path, split, arguments.crops, out, World(0, 1, device), precision)
    else:
        requirements = Requirements(
            dataset_path=data,
            dataset_sha256=dataset.sha256,
            folder=out,
            option="--out",
            may_be_bfloat16=run.config.may_be_bfloat16,
            num_shards=dataset.num_shards,
        )
        work = functools.partial(evaluate_run, data, run.path, split, arguments.crops, out)
        _launch(work, arguments, run, requirements)
    return _show(run, f"{split} of {data}", arguments.crops, out)


def evaluate_source(arguments: "Arguments", root: Path) -> dict[str, Any]:
    """Evaluate on unsharded pictures, and print the result.

    Args:
        arguments: Command line.
        root: Folder or file of the source.

    Returns:
        The result as a document.
    """
    if arguments.data is not None:
        raise InputError("--data and --source exclude each other; leave one out")
    if arguments.workers != 1:
        raise InputError("--source is evaluated by this process alone; leave out --workers")
    run = RunFolder.open((arguments.run or embedded.run_folder()).absolute())
    announce_file(run.config.model.name)
    source = open_source(root, options=ListingOptions(arguments.ignore))
    pictures = own_pictures(source, run, arguments.split, arguments.unknown_classes)
    name = "-".join(filter(None, ("source", root.resolve().name, arguments.split, arguments.crops)))
    out = (arguments.out or run.evaluations_path / name).absolute()
    _check_out(out)
    if arguments.out is None and (other := evaluated_source(out)) not in (None, str(root.resolve())):
        raise InputError(f"{out} holds the evaluation of {other}; name another folder: --out")
    sys.stdout.write(f"source, layout {source.layout}:\n{textwrap.indent(str(pictures.inventory), '  ')}\n")
    if pictures.skipped:
        num_pictures = sum(pictures.skipped.values())
        unknown = named(list(pictures.skipped))
        sys.stdout.write(f"skipped, since the run does not know their classes ({unknown}): {num_pictures}\n")
    if pictures.absent:
        sys.stdout.write(f"no picture of {len(pictures.absent)} of its classes: {named(pictures.absent)}\n")
    sys.stdout.flush()
    world = World(0, 1, default_device())
    run = run.in_precision(fitting_precision_here(run.config.precision, world.device))
    rejects = evaluate_own(pictures, run, arguments.crops, out, world.device, world.num_threads)
    if rejects.reasons:
        sys.stdout.write(f"rejected, since they can't be decoded: {len(rejects.reasons)}, namely {rejects}\n")
    return _show(run, f"{pictures.split} of {root}", arguments.crops, out)


def _show(run: RunFolder, what: str, crops: Crops, out: Path) -> dict[str, Any]:
    """Print the result of an evaluation, and return it as a document."""
    result, classes = read_evaluation(out)
    sys.stdout.write(
        f"{run.config.name} ({run.config.model.name}) after step {result['step']}, on {what}, "
        f"{crops} crop{'s' * (crops == 'ten')}: loss {result['loss']:.4f}\n"
        f"{_worst_line(classes)}written to {out}\n"
        f"top-1 {result['top1'] * 100:.2f} %  top-5 {result['top5'] * 100:.2f} %  n={result['num_samples']}\n"
    )
    return {"run": str(run.path), "recipe": run.config.name, "model": run.config.model.name, "out": str(out), **result}


def _check_out(out: Path) -> None:
    """Raise InputError if `out` is a file, or a folder with files that are not from an evaluation."""
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; name a folder")
    if out.exists() and (others := foreign_files(out)):
        raise InputError(f"--out {out} holds {others[0]}, which is not of an evaluation; name a folder of its own")


def _launch(work: Callable[..., None], arguments: "Arguments", run: RunFolder, requirements: Requirements) -> None:
    check_interpreter(RAY)  # checked here, since a single worker needs no Ray
    from cluster.launch.placement import WorkerRange, place_workers
    from cluster.launch.ray_launch import RayCluster, training_session
    from cluster.launch.ray_node_checks import FitNodes

    workers = WorkerRange(arguments.workers, arguments.workers)
    place = functools.partial(place_workers, workers=workers, requested_cpus=arguments.cpus_per_worker)
    with training_session() as is_local, FitNodes(requirements, is_local) as fit_nodes:
        placement = fit_nodes.place(place)
        precision = fitting_precision(run.config.precision, fit_nodes.emulations(placement))
        work = functools.partial(work, precision=precision)
        RayCluster(work, f"{run.path.name}-evaluation", run.path, fit_nodes).run(placement)


def _worst_line(classes: list[dict[str, Any]]) -> str:
    """Return a line that names the classes with the lowest top-1, or nothing if there is only one class."""
    seen = sorted((row for row in classes if row["num_samples"]), key=lambda row: row["top1"])
    if len(seen) < 2:
        return ""
    # ImageNet's names are lists of synonyms; only the first is shown.
    named = (f"{row['name'].partition(',')[0]} {row['top1']:.1%}" for row in seen[:_NUM_WORST])
    return f"worst classes by top-1: {', '.join(named)}\n"
