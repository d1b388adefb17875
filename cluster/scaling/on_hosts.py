"""Measures cells on hosts of the lab: links are shaped and CPUs limited between a cell's warm-up and its steps.

A worker builds its model and makes its first step without a limit, on a link as fast as the machine is, since both
would take many times longer and are not measured.
"""

import contextlib
import dataclasses
import json
import math
import os
import select
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import IO, Any

from cluster.lab.cpu_quota import MIN_CPUS, CpuQuota, cpu_quota
from cluster.lab.host_workers import start_workers
from cluster.lab.hosts import Hosts, hosts
from cluster.lab.link_sweep import LinkFit, accepted_link
from cluster.lab.program_log import last_line_of
from cluster.lab.scaling_table import Cell
from cluster.lab.shaped_link import ShapedLink
from cluster.launch.node_checks import versions
from cluster.run.json_log import JsonLog
from cluster.scaling.folder import Identity, Say, write_cell, write_launch
from cluster.scaling.worker import Settings
from cluster.worker.allocator import ALLOCATOR_ENVIRONMENT
from pipeline.command import InputError

_COMMAND = ("-m", "cluster.scaling.worker")
_TIMEOUT_SECONDS = 3600.0  # for one answer
_END_SECONDS = 20.0
_POLL_SECONDS = 0.2
_REFUSED = 2  # status of a worker that can't use its input


class HostWorkers:
    """Workers on hosts, one each, that take orders; see `cluster.scaling.worker.serve`.

    Args:
        lab: The hosts.
        settings: What all cells have in common.
        cpus: CPUs that each worker may use at most; None: all.
        log: File for their messages.

    Attributes:
        identity: Code and kind of machine of the workers.
    """

    def __init__(self, lab: Hosts, settings: Settings, cpus: float | None, log: IO[str]) -> None:
        self._lab, self._log, self._cpus, self._num_steps = lab, log, cpus, settings.num_steps
        with contextlib.ExitStack() as resources:
            self._workers = start_workers(
                lab,
                [*_COMMAND, json.dumps(dataclasses.asdict(settings))],
                ALLOCATOR_ENVIRONMENT,
                None if cpus is None else math.ceil(cpus),
                first={"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1},
                stderr=log,
            )
            resources.callback(self._kill)
            self._quotas: list[CpuQuota] = []
            if cpus is not None:
                for rank, worker in enumerate(self._workers):
                    quota = resources.enter_context(cpu_quota(f"worker{rank}", None))
                    quota.add(worker.pid)
                    self._quotas.append(quota)
            self.identity = Identity(**self._answer())
            self._resources = resources.pop_all()

    def __enter__(self) -> "HostWorkers":
        """Begin."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """End the workers: without an error, by the end of orders."""
        orders = self._workers[0].stdin
        if kind is None and orders is not None:
            self._limit(None)
            orders.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                for worker in self._workers:
                    worker.wait(_END_SECONDS)
        self._resources.close()

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Return the measured fields of a cell's row.

        Raises:
            InputError: A worker failed.
        """
        self._lab.shape(None)
        self._limit(None)
        self._order("prepare", cell=dataclasses.asdict(cell))
        link = cell.gigabits_per_second
        self._lab.shape(ShapedLink(gigabits_per_second=link) if link else None)
        self._limit(self._cpus)
        self._order("warm_up")
        before = self._throttled_seconds()
        fields = self._order("measure")
        throttled = [after - then for then, after in zip(before, self._throttled_seconds(), strict=True)]
        return fields | {"throttled_seconds": fmean(throttled) / self._num_steps if throttled else None}

    def _limit(self, cpus: float | None) -> None:
        for quota in self._quotas:
            quota.limit(cpus)

    def _throttled_seconds(self) -> list[float]:
        return [quota.throttled_seconds() for quota in self._quotas]

    def _order(self, order: str, **values: Any) -> dict[str, Any]:
        orders = self._workers[0].stdin
        assert orders is not None
        try:
            orders.write(json.dumps({"order": order, **values}) + "\n")
            orders.flush()
        except BrokenPipeError:
            pass  # the worker has ended, which waiting for its answer tells
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        answers, deadline = self._workers[0].stdout, time.monotonic() + _TIMEOUT_SECONDS
        assert answers is not None
        while not select.select([answers], [], [], _POLL_SECONDS)[0]:
            self._check()
            if time.monotonic() > deadline:
                raise InputError(
                    f"workers on hosts gave no answer within {_TIMEOUT_SECONDS:.0f} s; see {self._log.name}"
                )
        line = answers.readline()
        if not line:
            time.sleep(_POLL_SECONDS)  # until the status of what has ended is known
            self._check()
            raise InputError(f"a worker on a host ended; see {self._log.name}")
        return dict(json.loads(line))

    def _check(self) -> None:
        failed = {rank: worker.returncode for rank, worker in enumerate(self._workers) if worker.poll()}
        if not failed:
            return
        last = last_line_of(Path(self._log.name))
        if _REFUSED in failed.values():
            raise InputError(last.removeprefix("error: "))
        ranks = ", ".join(f"{rank} with status {status}" for rank, status in failed.items())
        raise InputError(f"a worker on a host failed ({ranks}): {last}; see {self._log.name}")

    def _kill(self) -> None:
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.wait()
        for pipe in (self._workers[0].stdin, self._workers[0].stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()


class OnHosts:
    """Hosts of the lab as the place where an experiment's workers run; see `cluster.scaling.sweep.Place`.

    Args:
        settings: What all cells have in common.
        cpus: CPUs that each worker may use at most; None: all.
        log: Path of the file for the workers' messages.
    """

    def __init__(self, settings: Settings, cpus: float | None, log: Path) -> None:
        self._settings, self._cpus, self._log = settings, cpus, log

    def sweep(self, num_workers: int, gigabits: float) -> LinkFit:
        """Return what a link is, by a sweep.

        Raises:
            LinkDoesNotFitError: It does not fit its model.
            InputError: A worker failed.
        """
        with hosts(num_workers, ShapedLink(gigabits_per_second=gigabits)) as lab:
            return accepted_link(lab)

    def measure(self, num_workers: int, cells: Sequence[tuple[int, Cell]], log: Path, say: Say) -> None:
        """Launch workers that measure cells; each is added to the launch's log, and said, as soon as it is measured."""
        with (
            hosts(num_workers) as lab,
            open(self._log, "a") as messages,
            HostWorkers(lab, self._settings, self._cpus, messages) as workers,
            contextlib.closing(JsonLog(log)) as launch,
        ):
            write_launch(launch, workers.identity, versions())
            for place, cell in cells:
                fields = workers.measure(cell)
                write_cell(launch, cell, place, self._settings.num_steps, fields)
                say(cell, fields["step_seconds"])


def check_cpus(workers: Sequence[int], cpus_per_worker: float) -> None:
    """Check that this machine has the CPUs that workers may use.

    Raises:
        InputError: It has fewer.
    """
    num_cpus, needed = _all_cpus(), max(workers) * cpus_per_worker
    if needed > num_cpus:
        share = math.floor(num_cpus / max(workers) * 100) / 100
        raise InputError(
            f"{max(workers)} workers of {cpus_per_worker:g} CPUs need {needed:g}, and this machine has {num_cpus}; use "
            f"{f'--cpus-per-worker {share:g}, or ' * (share >= MIN_CPUS)}fewer --workers"
        )


def _all_cpus() -> int:
    return len(os.sched_getaffinity(0))
