"""Paths from outside: from the command line of what may be a submitted job, and from a dataset's documents."""

import os
from pathlib import Path

from pipeline.command import InputError

CHECKOUT = Path(__file__).resolve().parent.parent
"""Folder that holds the project's packages."""

# Name of the folder where Ray unpacks an uploaded working directory; the copy is removed with the session.
_UPLOAD_FOLDER = "runtime_resources"


def shared_path(path: Path, option: str) -> Path:
    """Return an absolute path that means the same on every worker.

    Args:
        path: Path from the command line.
        option: Name of its option, for messages.

    Raises:
        InputError: The path is relative to the temporary copy that a submitted job runs in.
    """
    if not path.is_absolute() and _UPLOAD_FOLDER in Path.cwd().parts:
        raise InputError(
            f"{option} {path} is relative, but a job submitted with --working-dir runs in a temporary copy; "
            "give an absolute path"
        )
    return path.absolute()


def lies_in(path: Path, folder: Path) -> bool:
    """Return whether a path, which need not exist, is a folder or lies in it; links are followed."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def lies_inside(name: object) -> bool:
    """Return whether a name from a document stays in the document's folder: only relative parts, no backslash."""
    return (
        isinstance(name, str)
        and not {"\\", "\0"} & set(name)
        and not {"", ".", ".."} & set(name.split("/"))  # an absolute path begins with an empty part
    )
