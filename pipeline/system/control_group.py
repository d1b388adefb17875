"""Limits of the control groups that this process is in (Linux, versions 1 and 2). Standard library only.

A limit of any group from the process's own up to the topmost one that is visible counts. In a container, the topmost
one is usually the container's own.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_ROOT, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_NO_LIMIT_BYTES = 2**60  # version 1 states about 2**63 where there is no limit


@dataclass(frozen=True)
class MemoryLimit:
    """Limit of memory of a group.

    Attributes:
        limit_bytes: The limit.
        used_bytes: What the group uses of it, less what the kernel gives back first: file pages not used lately.
    """

    limit_bytes: int
    used_bytes: int

    @property
    def available_bytes(self) -> int:
        """What may still be used."""
        return max(0, self.limit_bytes - self.used_bytes)


def memory_limit(root: Path = _ROOT, own: Path = _OWN) -> MemoryLimit | None:
    """Return the limit that leaves the least memory, or None if there is none.

    Args:
        root: Where the groups are mounted.
        own: Linux's list of the groups of this process.
    """
    limits = []
    for folder in _folders("memory", root, own):
        for names in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            with contextlib.suppress(OSError, ValueError):  # no such file, or no limit: `max`
                limit, used = (int((folder / name).read_text()) for name in names)
                if limit < _NO_LIMIT_BYTES:
                    limits.append(MemoryLimit(limit, max(0, used - _idle_file_bytes(folder))))
    return min(limits, key=lambda limit: limit.available_bytes, default=None)


def cpu_limit(root: Path = _ROOT, own: Path = _OWN) -> float | None:
    """Return how many CPUs' time the process may use, or None if there is no limit; see `memory_limit`."""
    limits = []
    for folder in _folders("cpu", root, own):
        with contextlib.suppress(OSError, ValueError):  # `max` is no number
            quota, period = (int(word) for word in (folder / "cpu.max").read_text().split())
            limits.append(quota / period)
        with contextlib.suppress(OSError, ValueError):
            quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
            limits.append(quota / period if quota > 0 else math.inf)
    least = min(limits, default=math.inf)
    return None if math.isinf(least) else least


def _folders(controller: str, root: Path, own: Path) -> Iterator[Path]:
    """Yield the folders of the process's groups for a controller, each group before the one that it is in."""
    with contextlib.suppress(OSError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            base = root / controllers if controllers else root
            group = base / path.lstrip("/")
            while group != base and base in group.parents:
                yield group
                group = group.parent
            yield base


def _idle_file_bytes(folder: Path) -> int:
    for line in (folder / "memory.stat").read_text().splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file") and value.isdigit():
            return int(value)
    return 0
