"""Paths that come from outside: on the command line of what may be a submitted job, and in a dataset's documents."""

from pathlib import Path

from pipeline.command import InputError

CHECKOUT = Path(__file__).resolve().parent.parent
"""The folder that holds the project's packages."""

# Where Ray unpacks an uploaded working directory: a copy that is removed with the session.
_UPLOAD_FOLDER = "runtime_resources"


def shared_path(path: Path, option: str) -> Path:
    """Return an absolute path that means the same on every worker.

    Raises:
        InputError: The path is relative to the temporary copy that a submitted job runs in.
    """
    if not path.is_absolute() and _UPLOAD_FOLDER in Path.cwd().parts:
        raise InputError(
            f"{option} {path} is relative, but a job submitted with --working-dir runs in a temporary copy; "
            f"give the absolute path"
        )
    return path.absolute()


def lies_inside(name: object) -> bool:
    """Return whether a name from a document stays in the document's folder: relative parts alone, and no backslash."""
    return (
        isinstance(name, str)
        and not {"\\", "\0"} & set(name)
        and not {"", ".", ".."} & set(name.split("/"))  # an absolute path begins with an empty part
    )
