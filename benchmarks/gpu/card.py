"""The card, as its driver describes it. Imports nothing large."""

import subprocess

NAME, DRIVER = "name", "driver_version"
_FIELDS = (NAME, DRIVER, "memory.total", "pcie.link.gen.current", "pcie.link.width.current", "clocks.sm", "power.limit")


def describe_card() -> dict[str, str]:
    """Return what nvidia-smi says of the first GPU, by the names of its fields; empty if it can't be asked."""
    command = ["nvidia-smi", "--id=0", f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return {}
    return parsed(answer.stdout) if answer.returncode == 0 else {}


def parsed(line: str) -> dict[str, str]:
    """Return the fields of nvidia-smi's answer, a line of CSV without a header."""
    return dict(zip(_FIELDS, (value.strip() for value in line.split(",")), strict=True))
