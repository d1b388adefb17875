"""The memory that this process may still take."""

import contextlib
from pathlib import Path

import psutil


def available_memory_bytes() -> int:
    """Return the memory that is free on this machine, or less if the process's control group is limited."""
    available = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # no limit (`max`), or no control groups of version 2
        limit = int((group / "memory.max").read_text())
        available = min(available, limit - int((group / "memory.current").read_text()))
    return available
