"""What a program that this one started says in its log."""

from pathlib import Path


def last_line_of(log: Path, start: str = "") -> str:
    """Return the last line of a program's log that begins with `start`, or if there is none, the last line."""
    lines = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
    return ([line for line in lines if line.startswith(start)] or lines)[-1]
