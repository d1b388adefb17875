"""What a command does before it imports anything that may be missing. Standard library only."""

import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster.worker.allocator import restart_with_tuned_allocator

_WITHOUT_DALI = ("torch", "pyarrow", "tyro", "xxhash", "matplotlib")
_NEEDED = (*_WITHOUT_DALI, "nvidia.dali")
RAY = ("ray",)  # needed only by launchers that use Ray
# Of commands that do with less than the others.
_NEEDED_BY = {
    **dict.fromkeys(("doctor", "completion"), ("tyro",)),
    "preflight": ("ray", "tyro"),
    **dict.fromkeys(("synthesize", "fetch", "shard", "verify", "stats", "preview", "ledger"), _WITHOUT_DALI),
}
_COMPUTE_HERE = ("evaluate", "predict")


def prepare(command: str) -> None:
    """Check the interpreter for a command, and restart the process if it computes and its allocator is not tuned.

    Args:
        command: Name of the command: the last part of its module's name.
    """
    check_interpreter(_NEEDED_BY.get(command, _NEEDED))
    trains_here = command == "train" and (
        "TORCHELASTIC_RUN_ID" in os.environ or any(word.startswith("--launcher") for word in sys.argv)
    )
    if command in _COMPUTE_HERE or trains_here:  # a worker on Ray gets these settings from its launcher
        restart_with_tuned_allocator()


def check_interpreter(needed: Sequence[str] = _NEEDED) -> None:
    """Exit with a one-line message if this interpreter cannot run a job, for example because it lacks a module.

    A submitted job runs the first `python` on the PATH of the process that ran `ray start`, even if Ray is installed
    elsewhere.

    Args:
        needed: Names of the modules.
    """
    try:
        os.getcwd()
    except FileNotFoundError:
        sys.stderr.write("error: the working directory was removed; change to one that exists\n")
        sys.exit(2)
    if sys.flags.optimize > 1 and "nvidia.dali" in needed:
        sys.stderr.write("error: NVIDIA DALI can't be loaded without docstrings: leave out -OO, unset PYTHONOPTIMIZE\n")
        sys.exit(2)
    missing = [name for name in needed if not _is_installed(name)]
    if sys.version_info >= (3, 11) and not missing:
        return
    lacks = f"lacks {', '.join(missing)}" if missing else "is older than 3.11"
    venv = Path(__file__).resolve().parent.parent / ".venv" / "bin" / "python"
    python = str(venv) if venv.exists() else "/path/to/.venv/bin/python"
    line = f"error: {sys.executable} {lacks}; "
    if "RAY_JOB_ID" in os.environ or "RAY_ADDRESS" in os.environ:
        line += (
            "a job runs the first `python` on the PATH that `ray start` had: start Ray with the environment's "
            f"bin folder first on PATH, or name the interpreter: ray job submit ... -- {python} jobs/train.py"
        )
    else:
        line += f"run `make setup`, then use {python}"
    if missing == ["nvidia.dali"]:
        line += "; DALI alone: pip install 'alexnet-at-scale[cuda13]', or [cuda12] (both run without a GPU)"
    sys.stderr.write(line + "\n")
    sys.exit(2)


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
