"""The machine: processors, memory, shared memory, open files, clock."""

import os
import resource
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from jobs.checks.findings import Finding
from jobs.checks.probes import Probe
from pipeline.paths import CHECKOUT
from pipeline.system.byte_counts import SHARED_MEMORY_BYTES_PER_GPU, readable_bytes
from pipeline.system.clock import clock_state
from pipeline.system.control_group import cpu_limit, memory_limit
from pipeline.system.processor import this_processor

_LITTLE_MEMORY_BYTES = 2 * 10**9  # a round figure for Ray, a driver and a worker with torch and DALI loaded
_SHARED_MEMORY = Path("/dev/shm")
_LEAST_SHARED_BYTES = 128 * 2**20  # the least object store that Ray starts with is 75 MiB, and it lies here
_LEAST_OPEN_FILES = 1024
_MEMINFO = Path("/proc/meminfo")


def check_processor() -> Iterator[Finding]:
    """Tell the processor, and what limits the libraries that compute on it."""
    yield Finding("processor", "ok", str(this_processor()))


def check_precision(torch_probe: Probe) -> Iterator[Finding]:
    """Tell the precision that a run would take here.

    Args:
        torch_probe: Probe that tried torch.
    """
    answer = torch_probe.answer()
    reason = f", since {answer['reason']}" if answer["reason"] else ""
    yield Finding("precision", "ok", f"--precision auto is {answer['precision']} here{reason}")


def check_cpus() -> Iterator[Finding]:
    """Compare the CPUs that this process may use with its control group's limit of CPU time."""
    num_all, num_usable, limit = os.cpu_count() or 1, len(os.sched_getaffinity(0)), cpu_limit()
    of_all = f" of this machine's {num_all}" if num_usable < num_all else ""
    found = f"{num_usable}{of_all} may be used"
    if limit is not None and limit < num_usable:
        advice = f"raise the limit, or set OMP_NUM_THREADS={max(1, int(limit))}"
        found += f", but the control group allows the time of {limit:g}, so threads will wait for each other"
        yield Finding("CPUs", "warning", found, advice)
    else:
        yield Finding("CPUs", "ok", found)


def check_memory() -> Iterator[Finding]:
    """Tell how much memory is available within the limit of the control group."""
    host = _host_memory()
    limit = memory_limit()
    total, available, whose = host["MemTotal"], host["MemAvailable"], "this machine's"
    if limit is not None and limit.limit_bytes < total:
        total, whose = limit.limit_bytes, "the control group's"
    if limit is not None:
        available = min(available, limit.available_bytes)
    found = f"{readable_bytes(available)} available of {whose} {readable_bytes(total)}"
    if available < _LITTLE_MEMORY_BYTES:
        advice = "end other programs, raise the limit, or train with --launcher alone and --micro-batch-size"
        yield Finding("memory", "warning", f"{found}, which is little for Ray and its workers", advice)
    else:
        yield Finding("memory", "ok", found)


def check_address_space() -> Iterator[Finding]:
    """Tell of a limit of the address space, if there is one: libraries and shards are mapped into it."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        cause = (
            f"is limited to {readable_bytes(limit)}: torch and DALI reserve more addresses than they use memory, and "
            "fail or crash if they don't get them"
        )
        yield Finding("address space", "warning", cause, "lift the limit: ulimit -v unlimited")


def check_shared_memory(num_gpus: int, folder: Path = _SHARED_MEMORY) -> Iterator[Finding]:
    """Check the room in /dev/shm, where Ray keeps its objects and NCCL exchanges gradients.

    Args:
        num_gpus: GPUs of this machine.
        folder: Where shared memory is mounted.
    """
    name = str(folder)
    try:
        usage = shutil.disk_usage(folder)
    except OSError as error:
        advice = "mount it: mount -t tmpfs tmpfs /dev/shm"
        yield Finding(name, "problem", f"can't be used ({error.strerror})", advice)
        return
    found = f"{readable_bytes(usage.free)} free of {readable_bytes(usage.total)}"
    needed = _LEAST_SHARED_BYTES + num_gpus * SHARED_MEMORY_BYTES_PER_GPU
    if usage.free < needed:
        advice = "enlarge it: docker run --shm-size=1g, or mount -o remount,size=1g /dev/shm"
        yield Finding(name, "warning", f"{found}; Ray and NCCL may need {readable_bytes(needed)}", advice)
    else:
        yield Finding(name, "ok", found)


def check_open_files(num_shards: int | None) -> Iterator[Finding]:
    """Check how many files a process may open.

    Args:
        num_shards: Shards of the dataset to be trained on; None: not known.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"a process may open {_limit(hard)} files ({_limit(soft)} until it asks for more)"
    needed = _LEAST_OPEN_FILES
    if num_shards is not None:
        from pipeline.online.shard_maps import open_files_for

        needed = max(needed, open_files_for(num_shards))
    if hard == resource.RLIM_INFINITY or hard >= needed:
        yield Finding("open files", "ok", found)
    elif hard < _LEAST_OPEN_FILES:
        advice = f"raise the hard limit to {needed}: ulimit -Hn, or LimitNOFILE= of a service"
        yield Finding("open files", "problem", f"{found}; Ray and the loader open more", advice)
    else:
        cause = f"{found}, so that {num_shards:,} shards are opened again and again"
        yield Finding("open files", "warning", cause, f"should that be slow, raise the hard limit to {needed}")


def check_clock() -> Iterator[Finding]:
    """Tell what Linux knows of its clock; only a look at the cluster's other nodes shows how far they differ."""
    newest = max(path.stat().st_mtime for path in (CHECKOUT / "pipeline").glob("*.py"))
    behind = newest - time.time()
    if behind > 0:
        cause = f"is {behind:,.0f} s behind the date of this project's own files"
        yield Finding("clock", "problem", cause, "set it, and let a time service (chrony, systemd-timesyncd) keep it")
        return
    state = clock_state()
    if state is None:
        yield Finding("clock", "ok", "this system does not tell how accurate it is")
    elif state.is_synchronized:
        error = state.max_error_seconds
        yield Finding("clock", "ok", f"kept by a time service; its largest error is {error:.2g} s")
    else:
        cause = "Linux knows of no time service that keeps it (in a container or virtual machine its host may)"
        yield Finding("clock", "warning", cause, "on a cluster, let chrony or systemd-timesyncd keep it on every node")


def _host_memory() -> dict[str, int]:
    """Return the machine's memory, in bytes, by Linux's names."""
    found = {}
    for line in _MEMINFO.read_text().splitlines():
        name, _, value = line.partition(":")
        found[name] = int(value.split()[0]) * 1024
    return found


def _limit(value: int) -> str:
    return "any number of" if value == resource.RLIM_INFINITY else f"{value:,}"
