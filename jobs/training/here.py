"""Train without Ray: in this process, alone or together with others started by torchrun."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from cluster.launch.torch_launch import Signals, local_world
from cluster.run.config import TrainingConfig
from cluster.run.run_folder import RunFolder
from cluster.run.run_log import Finished, Launched
from cluster.worker.emulation import Emulation
from cluster.worker.precision import emulations_of_all
from cluster.worker.training import train
from cluster.worker.world import World
from jobs.training.job import TrainingJob

if TYPE_CHECKING:
    from jobs.train import Arguments


def train_here(arguments: "Arguments", config: TrainingConfig, launcher: Literal["torch", "alone"]) -> None:
    """Train to the run's end, or until a signal stops it at a checkpoint.

    The first worker creates the embedded dataset and the run folder if they are missing, and then tells the others
    whether training begins.

    Args:
        arguments: Command line.
        config: Recipe to train.
        launcher: `torch` if torchrun started this process.
    """
    with local_world(launcher) as (world, signals):
        # Refused before anything begins, if this worker's device can't do it.
        world.loader_config(config.decode, options=arguments.worker_options)
        emulations = emulations_of_all(world) if config.may_be_bfloat16 else []
        if world.is_first:
            _lead(arguments, config, world, signals, emulations)
        else:
            _follow(arguments, config, world, signals)


def _lead(
    arguments: "Arguments", config: TrainingConfig, world: World, signals: Signals, emulations: Sequence[Emulation]
) -> None:
    job = TrainingJob.prepare(arguments, config, world.world_size)
    begins = not job.is_finished()
    if begins:
        job = job.in_precision(emulations)
        job.announce(_described(world), world.world_size)
    if not begins or job.is_dry:
        world.first_says(False)
        return
    with job.begun() as (run, log):
        world.first_says(True)
        log.write(Launched(num_workers=world.world_size))
        train(job.data, job.run_path, world, arguments.worker_options)
        if run.result is not None:
            log.write(Finished())
    if run.result is None:
        signals.raise_first()
    job.say_finished()


def _follow(arguments: "Arguments", config: TrainingConfig, world: World, signals: Signals) -> None:
    begins = world.first_says()
    job = TrainingJob.prepare(arguments, config, world.world_size, is_quiet=True)  # also checks this node in a dry run
    if begins:
        train(job.data, job.run_path, world, arguments.worker_options)
        if RunFolder.open(job.run_path).result is None:
            signals.raise_first()


def _described(world: World) -> str:
    return "1 worker, alone" if world.world_size == 1 else f"{world.world_size} workers of torchrun"
