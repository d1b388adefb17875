"""Whose something is that outlives a kill: what a dead owner has left is found by this, and removed.

An owner is a process, told from all others since the machine started by its id, its start time, and the namespace in
which the id is valid: another one's ids say nothing here.
"""

import os
import re
from pathlib import Path

_OWNER = re.compile(r"(?P<process_id>\d+)-\d+-(?P<namespace>\d+)")


def this_owner() -> str:
    """Return what tells this process from all others; letters of file names only."""
    owner = _owner(os.getpid())
    assert owner is not None
    return owner


def is_dead(owner: str) -> bool:
    """Return whether an owner has ended; False for what is no owner, or one of another container."""
    found = _OWNER.fullmatch(owner)
    if found is None or found["namespace"] != _process_namespace():
        return False
    return _owner(int(found["process_id"])) != owner


def _owner(process_id: int) -> str | None:
    try:
        words = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    state, start_time = words[0], words[19]
    return None if state == "Z" else f"{process_id}-{start_time}-{_process_namespace()}"


def _process_namespace() -> str:
    return str(os.stat("/proc/self/ns/pid").st_ino)
