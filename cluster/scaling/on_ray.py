"""Measures cells on Ray: a worker group of Ray Train per launch, on links as they are.

The first worker writes the launch's log, which all nodes see; so nothing that was measured is lost with the driver.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

from cluster.exchange.link import measure_link
from cluster.lab.link_sweep import LinkFit
from cluster.lab.scaling_table import Cell
from cluster.launch.node_checks import Requirements, versions
from cluster.launch.placement import Place, Placement, WorkerRange, place_workers
from cluster.launch.ray_launch import RayCluster, training_session
from cluster.launch.ray_node_checks import FitNodes
from cluster.launch.supervisor import WorkersLost
from cluster.run.json_log import JsonLog
from cluster.scaling.folder import Say, read_cells, write_cell, write_launch
from cluster.scaling.worker import CellWorker, Settings
from cluster.worker.world import World
from pipeline.command import InputError
from pipeline.dataset import Dataset

_POLL_SECONDS = 0.5
_LOCK_SECONDS = 120.0  # time for workers of a killed driver to end


class OnRay:
    """A session of Ray as the place where an experiment's workers run; see `cluster.scaling.sweep.Place`.

    Args:
        settings: What all cells have in common.
        folder: Folder of the experiment.
        fit_nodes: Nodes that workers are placed on.
    """

    def __init__(self, settings: Settings, folder: Path, fit_nodes: FitNodes) -> None:
        self._settings, self._folder, self._fit_nodes = settings, folder, fit_nodes

    def place(self, num_workers: int) -> Placement:
        """Return where workers run.

        Raises:
            InputError: There is no room for so many.
        """
        return self._fit_nodes.place(_place_workers(num_workers))

    def sweep(self, num_workers: int, gigabits: float) -> LinkFit:
        """Refuse: no link is shaped on Ray."""
        raise InputError("links are shaped on hosts of this machine alone: --on hosts")

    def measure(self, num_workers: int, cells: Sequence[tuple[int, Cell]], log: Path, say: Say) -> None:
        """Launch workers that measure cells; each is said as soon as it stands in the launch's log."""
        work = functools.partial(_measure, self._settings, list(cells), log)
        cluster = RayCluster(work, f"{self._folder.name}-scaling", self._folder, self._fit_nodes)
        num_said = len(read_cells(log))
        try:
            launch = cluster.start(self.place(num_workers))
            is_over = False
            while not is_over:
                is_over = launch.wait(_POLL_SECONDS)
                measured = read_cells(log)
                for cell, step_seconds in measured[num_said:]:
                    say(cell, step_seconds)
                num_said = len(measured)
        except WorkersLost as lost:
            raise InputError(f"{lost}; the same command goes on from the cells that were measured") from lost


@contextlib.contextmanager
def on_ray(settings: Settings, folder: Path, datasets: Sequence[Dataset], workers: Sequence[int]) -> Iterator[OnRay]:
    """Connect to the cluster of a submitted job, else start a local Ray, while the block runs.

    Args:
        settings: What all cells have in common.
        folder: Folder of the experiment.
        datasets: Datasets that workers read.
        workers: Numbers of workers that there must be room for.

    Raises:
        InputError: There is no room for them, or a node lacks one of the datasets.
    """
    needs = [_requirements(folder, dataset) for dataset in datasets] or [_requirements(folder, None)]
    with training_session() as is_local, FitNodes(needs[0], is_local) as fit_nodes:
        place = OnRay(settings, folder, fit_nodes)
        for num_workers in workers:
            place.place(num_workers)
        for other in needs[1:]:
            with FitNodes(other, is_local) as nodes:  # no launch is placed by these, so none may be left out
                for num_workers in workers:
                    nodes.place(_place_workers(num_workers), needs_all=True)
        yield place


def _requirements(folder: Path, dataset: Dataset | None) -> Requirements:
    return Requirements(
        dataset_path=None if dataset is None else dataset.path,
        dataset_sha256=None if dataset is None else dataset.sha256,
        folder=folder,
        option="--out",
        num_shards=0 if dataset is None else dataset.num_shards,
    )


def _place_workers(num_workers: int) -> Place:
    workers = WorkerRange(num_workers, num_workers)
    return functools.partial(place_workers, workers=workers, requested_cpus=None)


def _measure(settings: Settings, cells: Sequence[tuple[int, Cell]], path: Path, world: World) -> None:
    """Measure cells as a worker."""
    with contextlib.ExitStack() as resources:
        worker = CellWorker(world, settings)
        resources.callback(worker.close)
        identity = worker.identity()
        link = measure_link(world.device) if world.world_size > 1 else None
        log = None
        if world.is_first:
            log = resources.enter_context(contextlib.closing(JsonLog(path, _LOCK_SECONDS)))
            write_launch(log, identity, versions(), link)
        for place, cell in cells:
            worker.prepare(cell)
            worker.warm_up()
            fields = worker.measure() | {"throttled_seconds": None}
            if log is not None:
                write_cell(log, cell, place, settings.num_steps, fields)
