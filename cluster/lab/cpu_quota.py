"""Limits of CPU time for groups of processes, by Linux's control groups, version 1 or 2. By root only.

A group may use its share in each period of 10 ms. The kernel's default of 100 ms would stall a ring of workers again
and again: one that has used up its share is away for the rest of the period, and all others wait for it.

A group stays behind where the process that made it is killed; the next group removes it, or `remove_orphaned_quotas`.
"""

import contextlib
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

from cluster.lab.owner import is_dead, this_owner
from pipeline.command import InputError

_PREFIX = "alexnet-lab-"
_PERIOD_MICROSECONDS = 10_000
_MIN_QUOTA_MICROSECONDS = 1_000  # the kernel's smallest
MIN_CPUS = _MIN_QUOTA_MICROSECONDS / _PERIOD_MICROSECONDS
_ROOT, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_GIVE_UP_SECONDS = 5.0
_POLL_SECONDS = 0.02


def check_limit(field: str, cpus: float | None) -> None:
    """Check that the kernel can limit a group to so many CPUs; None: no limit.

    Raises:
        ValueError: Names the field, its value and what would be right.
    """
    if cpus is not None and not MIN_CPUS <= cpus < math.inf:
        milliseconds = _PERIOD_MICROSECONDS // 1_000
        raise ValueError(
            f"{field}={cpus}: must be at least {MIN_CPUS}, the kernel's least in periods of {milliseconds} ms"
        )


class CpuQuota:
    """One group of processes. What they start joins it."""

    def __init__(self, name: str, cpus: float | None) -> None:
        """Make the group.

        Args:
            name: Its name, unlike those of this process's other groups.
            cpus: CPUs that it may use, such as 0.4; None: no limit yet.

        Raises:
            ValueError: That is less than the kernel can limit a group to.
            InputError: The machine offers no such groups to this process.
        """
        check_limit("cpus", cpus)
        parent, self._is_v2 = _parent()
        remove_orphaned_quotas()
        self._folder = parent / f"{_PREFIX}{this_owner()}-{name}"
        try:
            self._folder.mkdir(exist_ok=True)
            self.limit(cpus)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._folder.rmdir()
            raise InputError(
                f"this process may not limit CPUs ({error}); run it as root on a machine whose control groups are "
                "writable, or leave out the limit"
            ) from error

    def limit(self, cpus: float | None) -> None:
        """Let it use another number of CPUs; None: as many as the group around it.

        Raises:
            ValueError: That is less than the kernel can limit a group to.
        """
        check_limit("cpus", cpus)
        quota = None if cpus is None else round(cpus * _PERIOD_MICROSECONDS)
        if self._is_v2:
            (self._folder / "cpu.max").write_text(f"{quota or 'max'} {_PERIOD_MICROSECONDS}")
        else:
            (self._folder / "cpu.cfs_period_us").write_text(str(_PERIOD_MICROSECONDS))
            (self._folder / "cpu.cfs_quota_us").write_text(str(quota or -1))

    def add(self, process_id: int) -> None:
        """Move a process with all its threads into it; one that has ended is passed over."""
        with contextlib.suppress(ProcessLookupError):
            (self._folder / "cgroup.procs").write_text(str(process_id))

    def process_ids(self) -> list[int]:
        """Return the ids of the processes in it."""
        return _process_ids(self._folder)

    def throttled_seconds(self) -> float:
        """Return for how long its threads were held up so far, as the kernel counts it.

        Summed over the CPUs that they were held up on: with two threads on two CPUs, twice the time.
        """
        values = dict(line.split() for line in (self._folder / "cpu.stat").read_text().splitlines())
        if self._is_v2:
            return int(values["throttled_usec"]) * 1e-6
        return int(values["throttled_time"]) * 1e-9

    def close(self) -> None:
        """Remove it; processes still in it become free."""
        _remove(self._folder)


@contextlib.contextmanager
def cpu_quota(name: str, cpus: float | None) -> Iterator[CpuQuota]:
    """Make a group that exists while the block runs; see `CpuQuota`."""
    quota = CpuQuota(name, cpus)
    try:
        yield quota
    finally:
        quota.close()


def remove_orphaned_quotas() -> list[str]:
    """Remove the groups of processes that have died; return their names. What runs in them becomes free."""
    try:
        parent, _ = _parent()
    except InputError:  # there are no groups here
        return []
    orphans = [
        folder
        for folder in parent.glob(f"{_PREFIX}*-*-*-*")
        if is_dead("-".join(folder.name.removeprefix(_PREFIX).split("-")[:3]))
    ]
    for folder in orphans:
        with contextlib.suppress(PermissionError):
            _remove(folder)
    return sorted(folder.name for folder in orphans)


def _parent() -> tuple[Path, bool]:
    """Return the folder that groups are made in, and whether it is of version 2.

    Raises:
        InputError: There is none.
    """
    own = {}
    for line in _OWN.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        own[controllers] = path.lstrip("/")
    for controllers, path in own.items():
        if "cpu" in controllers.split(","):
            # In a container the path may be that of the machine, and the mount shows the container's part alone.
            for folder in (mount / part for mount in (_ROOT / controllers, _ROOT / "cpu") for part in (path, "")):
                if (folder / "cgroup.procs").exists():
                    return folder, False
    if "" in own and "cpu" in _read(_ROOT / "cgroup.controllers").split():
        with contextlib.suppress(OSError):  # the root group delegates it by this
            (_ROOT / "cgroup.subtree_control").write_text("+cpu")
        return _ROOT, True
    raise InputError(f"CPUs can't be limited here: no control group of kind `cpu` in {_ROOT}; leave out the limit")


def _remove(folder: Path) -> None:
    """Remove a group; processes still in it go to the group around it."""
    deadline = time.monotonic() + _GIVE_UP_SECONDS
    while folder.exists():
        try:
            for process_id in _process_ids(folder):
                with contextlib.suppress(OSError):
                    (folder.parent / "cgroup.procs").write_text(str(process_id))
            folder.rmdir()
        except FileNotFoundError:  # another process removes it, too
            return
        except OSError:  # a process that ends is still in it for a moment
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL_SECONDS)


def _process_ids(folder: Path) -> list[int]:
    return [int(line) for line in (folder / "cgroup.procs").read_text().split()]


def _read(path: Path) -> str:
    return path.read_text() if os.access(path, os.R_OK) else ""
