"""The memory that this process may still take."""

import psutil

from pipeline.system.control_group import memory_limit


def available_memory_bytes() -> int:
    """Return the memory that is free on this machine, or less if a control group of the process is limited."""
    available = int(psutil.virtual_memory().available)
    limit = memory_limit()
    return available if limit is None else min(available, limit.available_bytes)
