"""Limits the CPU time of training workers on hosts, from their first step on.

A worker's start, and Ray's own processes, are not limited: with a fraction of a core they would take minutes. Workers
are told by the title that Ray Train gives them. When they have made a step stands in the log of their run, which the
first worker has open; so any command that trains is limited, however it names its run. Jobs that log no
steps are limited only if one trains beside them.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import psutil

from cluster.lab.cpu_quota import CpuQuota
from cluster.lab.hosts import Host, Hosts
from cluster.run.run_log import METRICS_JSONL, Steps, only, read_metrics

_TITLE = "RayTrainWorker"


class WorkerLimits:
    """The limits of a lab's hosts, one each."""

    def __init__(self, lab: Hosts, cpus: float) -> None:
        """Make them; see `update`.

        Args:
            lab: The hosts.
            cpus: CPUs that the workers of a host may use together.

        Raises:
            InputError: This process may not limit CPUs.
        """
        self._lab = lab
        self._quotas: list[CpuQuota] = []
        try:
            for number, _ in enumerate(lab, 1):
                self._quotas.append(CpuQuota(f"host{number}", cpus))
        except BaseException:
            self.close()
            raise

    def update(self) -> None:
        """Limit the workers that have made a step since they were started; to be called about once a second."""
        workers = [(quota, worker) for host, quota in zip(self._lab, self._quotas, strict=True) for worker in _of(host)]
        limited = {process_id for quota in self._quotas for process_id in quota.process_ids()}
        if all(worker.pid in limited for _, worker in workers):
            return
        moments = [moment for _, worker in workers for moment in _latest_step_times(worker)]
        for quota, worker in workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                if worker.pid not in limited and any(moment > worker.create_time() for moment in moments):
                    quota.add(worker.pid)

    def num_limited(self) -> list[int]:
        """Return the number of limited processes on each host."""
        return [len(quota.process_ids()) for quota in self._quotas]

    def throttled_seconds(self) -> list[float]:
        """Return for how long each host's workers were held up so far, summed over CPUs."""
        return [quota.throttled_seconds() for quota in self._quotas]

    def close(self) -> None:
        """Remove the limits."""
        for quota in self._quotas:
            quota.close()


def _of(host: Host) -> Iterator[psutil.Process]:
    """Yield the training workers on a host."""
    for process_id in host.process_ids():
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(process_id)
            if _TITLE in " ".join(process.cmdline()):
                yield process


def _latest_step_times(worker: psutil.Process) -> Iterator[float]:
    """Yield when the run was last seen to step, of each run that a worker logs."""
    with contextlib.suppress(psutil.Error, OSError):  # it ends, or the run folder is removed
        for file in worker.open_files():
            path = Path(file.path)
            if path.name == METRICS_JSONL and (steps := only(Steps, read_metrics(path))):
                yield steps[-1].time
