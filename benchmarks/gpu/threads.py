"""CPU time of this process by thread, from /proc: what DALI's own threads use, and what all others use."""

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

DALI, OTHERS = "DALI", "others"
_TASKS = Path("/proc/self/task")
_DALI_NAMES = ("[DALI]", "[NVIMGCODEC]")  # begin the names of the threads that DALI and its decoders start
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Usage:
    """CPU time used between two moments.

    Attributes:
        cores: Mean number of busy cores, by role: `DALI`, the name of a Python thread, or `others`.
    """

    cores: dict[str, float]

    @property
    def total(self) -> float:
        """Mean number of busy cores."""
        return sum(self.cores.values())

    @property
    def beside_dali(self) -> float:
        """Mean number of cores kept busy by threads that are not DALI's."""
        return self.total - self.cores.get(DALI, 0.0)


class ThreadClock:
    """Measures the CPU time of all threads from now on. The time of a thread that ends meanwhile is lost."""

    def __init__(self) -> None:
        self._began, self._first = time.perf_counter(), _cpu_seconds()

    def usage(self) -> Usage:
        """Return the CPU time used since the clock was made."""
        elapsed = time.perf_counter() - self._began
        names = {thread.native_id: thread.name for thread in threading.enumerate()}
        cores: dict[str, float] = {}
        for thread_id, (comm, seconds) in _cpu_seconds().items():
            role = DALI if comm.startswith(_DALI_NAMES) else names.get(thread_id, OTHERS)
            spent = seconds - self._first.get(thread_id, (comm, 0.0))[1]
            cores[role] = cores.get(role, 0.0) + spent / elapsed
        return Usage(cores)


def parsed_stat(line: str) -> tuple[str, float]:
    """Return name and CPU seconds from a thread's line in /proc, whose name may hold blanks and brackets."""
    name, _, rest = line.partition("(")[2].rpartition(")")
    user, system = rest.split()[11:13]
    return name, (int(user) + int(system)) / _TICKS_PER_SECOND


def _cpu_seconds() -> dict[int, tuple[str, float]]:
    """Return name and CPU seconds of each thread, by its id."""
    seconds = {}
    for task in _TASKS.iterdir():
        try:
            seconds[int(task.name)] = parsed_stat((task / "stat").read_text())
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
    return seconds
