"""Limits of CPU time for groups of processes, by Linux's control groups, version 1 or 2. By root only.

A group may use its share in each period of 10 ms. The kernel's default of 100 ms would stall a ring of workers again
and again: one that has used up its share is away for the rest of the period, and all others wait for it.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.command import InputError

_PERIOD_MICROSECONDS = 10_000
_MIN_QUOTA_MICROSECONDS = 1_000  # the kernel's smallest
_ROOT = Path("/sys/fs/cgroup")
_GIVE_UP_SECONDS = 5.0
_POLL_SECONDS = 0.02


class CpuQuota:
    """One group of processes. What they start joins it."""

    def __init__(self, name: str, cpus: float) -> None:
        """Make the group.

        Args:
            name: Name of its folder, which must be unlike all others of the machine.
            cpus: CPUs that it may use, such as 0.4.

        Raises:
            InputError: The machine offers no such groups to this process.
        """
        self._folder, self._is_v2 = _folder(name)
        self._cpus = cpus
        try:
            self._folder.mkdir(exist_ok=True)
            self.limit(cpus)
        except OSError as error:
            raise InputError(
                f"this process may not limit CPUs ({error}); run it as root on a machine whose control groups are "
                "writable, or leave out the limit"
            ) from error

    def limit(self, cpus: float) -> None:
        """Let it use another number of CPUs."""
        quota = max(_MIN_QUOTA_MICROSECONDS, round(cpus * _PERIOD_MICROSECONDS))
        if self._is_v2:
            (self._folder / "cpu.max").write_text(f"{quota} {_PERIOD_MICROSECONDS}")
        else:
            (self._folder / "cpu.cfs_period_us").write_text(str(_PERIOD_MICROSECONDS))
            (self._folder / "cpu.cfs_quota_us").write_text(str(quota))

    def add(self, process_id: int) -> None:
        """Move a process with all its threads into it; one that has ended is passed over."""
        with contextlib.suppress(ProcessLookupError):
            (self._folder / "cgroup.procs").write_text(str(process_id))

    def process_ids(self) -> list[int]:
        """Return the ids of the processes in it."""
        return [int(line) for line in (self._folder / "cgroup.procs").read_text().split()]

    def throttled_seconds(self) -> float:
        """Return for how long its threads were held up so far, as the kernel counts it: summed over CPUs."""
        values = dict(line.split() for line in (self._folder / "cpu.stat").read_text().splitlines())
        if self._is_v2:
            return int(values["throttled_usec"]) * 1e-6
        return int(values["throttled_time"]) * 1e-9

    def close(self) -> None:
        """Remove it; processes still in it become free."""
        deadline = time.monotonic() + _GIVE_UP_SECONDS
        while self._folder.exists():
            for process_id in self.process_ids():
                with contextlib.suppress(OSError):
                    (self._folder.parent / "cgroup.procs").write_text(str(process_id))
            try:
                self._folder.rmdir()
            except OSError:  # a process that ends is still in it for a moment
                if time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_SECONDS)


@contextlib.contextmanager
def cpu_quota(name: str, cpus: float) -> Iterator[CpuQuota]:
    """Make a group that exists while the block runs; see `CpuQuota`."""
    quota = CpuQuota(name, cpus)
    try:
        yield quota
    finally:
        quota.close()


def _folder(name: str) -> tuple[Path, bool]:
    """Return the folder for a group of that name, beside this process's own, and whether it is of version 2."""
    own = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        own[controllers] = path.lstrip("/")
    for controllers, path in own.items():
        if "cpu" in controllers.split(","):
            for mount in (_ROOT / controllers, _ROOT / "cpu"):
                if (mount / path / "cpu.cfs_quota_us").exists() or (mount / "cgroup.procs").exists():
                    return mount / path / name, False
    if "" in own and "cpu" in _read(_ROOT / "cgroup.controllers").split():
        with contextlib.suppress(OSError):  # the root group delegates it by this
            (_ROOT / "cgroup.subtree_control").write_text("+cpu")
        return _ROOT / name, True
    raise InputError(f"CPUs can't be limited here: no control group of kind `cpu` in {_ROOT}; leave out the limit")


def _read(path: Path) -> str:
    return path.read_text() if os.access(path, os.R_OK) else ""
