"""Settings that make glibc's allocator keep the memory of large activations. Standard library only.

By default, glibc returns this memory to the kernel after each step and faults it in again page by page. Keeping it
makes a step of the grouped net on two cores 1.4 to 1.7 times as fast. glibc reads these variables when a process
starts, before Python runs: a launcher sets them for its workers, and a command that computes by itself restarts itself.
"""

import os
import platform
import sys

ALLOCATOR_ENVIRONMENT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(32 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
}


def restart_with_tuned_allocator() -> None:
    """Replace this process by the same command with the variables set.

    Returns without effect if the C library is not glibc, or if one of the variables is already set.
    """
    if platform.libc_ver()[0] != "glibc" or not ALLOCATOR_ENVIRONMENT.keys().isdisjoint(os.environ):
        return
    arguments = [sys.executable, *sys.orig_argv[1:]]
    os.execve(sys.executable, arguments, {**os.environ, **ALLOCATOR_ENVIRONMENT})
