"""Workers of torch.distributed on the hosts of a lab."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any

from cluster.lab.hosts import Host
from pipeline.command import InputError
from pipeline.paths import CHECKOUT

_PORT = 29500  # the hosts' ports are theirs alone
_POLL_SECONDS = 0.05


def run_workers(
    lab: Sequence[Host], command: Sequence[str], variables: Mapping[str, str] | None = None, timeout: float = 600.0
) -> str:
    """Run workers on hosts to their end, and return what the first prints.

    Args:
        lab: Host of each worker, by rank; the same one for several workers that are to exchange by its loopback
            interface. Each worker gets its share of the machine's cores.
        command: Arguments of this Python interpreter, such as `["-m", MODULE]`. The workers find each other by the
            default of `torch.distributed.init_process_group`.
        variables: Further variables of their environment.
        timeout: Seconds after which they are killed.

    Raises:
        InputError: A worker failed, or they did not end in time.
    """
    with tempfile.TemporaryFile("w+") as printed:
        workers = start_workers(lab, command, variables, first={"stdout": printed})
        _wait(workers, timeout)
        printed.seek(0)
        return printed.read()


def start_workers(
    lab: Sequence[Host],
    command: Sequence[str],
    variables: Mapping[str, str] | None = None,
    num_threads: int | None = None,
    first: Mapping[str, Any] | None = None,
    stderr: IO[str] | None = None,
) -> list[subprocess.Popen[Any]]:
    """Start workers on hosts; see `run_workers`.

    Args:
        lab: Host of each worker, by rank.
        command: Arguments of this Python interpreter.
        variables: Further variables of their environment.
        num_threads: Threads of each; None: its share of the machine's cores.
        first: Options of `subprocess.Popen` for the first one, the only one that can be heard.
        stderr: File for the messages of all; None: this process's.
    """
    threads = num_threads or max(1, len(os.sched_getaffinity(0)) // len(lab))
    shared = {
        "OMP_NUM_THREADS": str(threads),
        "MASTER_ADDR": lab[0].address,
        "MASTER_PORT": str(_PORT),
        "WORLD_SIZE": str(len(lab)),
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # the hosts have no names, of which it would warn
        **(variables or {}),
    }
    silent = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    return [
        host.popen(
            [sys.executable, *command],
            environment={**os.environ, **shared, "RANK": str(rank)},
            cwd=CHECKOUT,
            stderr=stderr,
            **(silent | (dict(first or {}) if rank == 0 else {})),
        )
        for rank, host in enumerate(lab)
    ]


def _wait(workers: Sequence[subprocess.Popen[Any]], timeout: float) -> None:
    """Wait until all workers have ended; kill those that still run when one has failed, or when the time is over."""
    deadline = time.monotonic() + timeout
    failed: dict[int, int] = {}
    try:
        while any(worker.poll() is None for worker in workers) and not failed:
            failed = {rank: worker.returncode for rank, worker in enumerate(workers) if worker.poll()}
            if time.monotonic() > deadline:
                raise InputError(f"{len(workers)} workers on hosts did not end within {timeout:.0f} s")
            time.sleep(_POLL_SECONDS)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    failed = failed or {rank: worker.returncode for rank, worker in enumerate(workers) if worker.returncode}
    if failed:
        raise InputError(f"workers on hosts failed, by rank and exit status: {failed}; their messages are above")
