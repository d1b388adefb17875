"""What a process finds around it: folders for temporary files, proxies. Standard library only.

Variables are changed for the moment of a call or for a child process, never for good.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.command import InputError

_SOCKET_BYTES = 107  # that the path of a Unix socket may have (Linux)
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")  # each in lower and upper case
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@contextlib.contextmanager
def variables_set(variables: Mapping[str, str], *also_kept: str) -> Iterator[None]:
    """Set environment variables while the block runs; what it does to them, or to `also_kept`, ends with it, too."""
    before = {name: os.environ.get(name) for name in (*variables, *also_kept)}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def proxy_of_environment(environment: Mapping[str, str]) -> str | None:
    """Return the name of a variable that sends HTTP requests through a proxy, or None."""
    names = (spelled for name in _PROXIES for spelled in (name, name.upper()))
    return next((name for name in names if environment.get(name)), None)


def without_proxy(environment: Mapping[str, str], *hosts: str) -> dict[str, str]:
    """Return variables by which an environment's proxy is not asked for this machine itself, nor for `hosts`.

    Empty where there is no proxy. What was not to be asked through it before stays so.
    """
    if proxy_of_environment(environment) is None:
        return {}
    stated = ",".join(environment.get(name, "") for name in ("no_proxy", "NO_PROXY")).split(",")
    names = [name.strip() for name in (*stated, *LOOPBACK, *hosts)]
    # `*`, no proxy for any host, is understood alone, not in a list.
    value = "*" if "*" in names else ",".join(dict.fromkeys(name for name in names if name))
    return {"no_proxy": value, "NO_PROXY": value}


def folder_for_sockets(num_bytes: int) -> Path:
    """Return a folder for temporary files that is short enough for Unix sockets below it: TMPDIR's, else /tmp.

    Args:
        num_bytes: Of a socket's path below the folder.

    Raises:
        InputError: None of them can be written, or is short enough.
    """
    usual = usual_temporary_folder()
    for folder in dict.fromkeys((usual, Path("/tmp"))):
        if holds_sockets(folder, num_bytes):
            return folder
    raise InputError(
        f"TMPDIR={usual} is too long for sockets below it, and /tmp can't be written; set TMPDIR to a folder whose "
        f"path has at most {_SOCKET_BYTES - num_bytes} characters"
    )


def holds_sockets(folder: Path, num_bytes: int) -> bool:
    """Return whether a folder can be written, and is short enough for sockets whose paths have so many more bytes."""
    return len(os.fsencode(folder)) + num_bytes <= _SOCKET_BYTES and os.access(folder, os.W_OK | os.X_OK)


def usual_temporary_folder() -> Path:
    """Return the folder for temporary files: TMPDIR's if it can be written, else the system's.

    Raises:
        InputError: None can be written.
    """
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise InputError(f"no folder for temporary files can be written ({error}); set TMPDIR to one") from error


@contextlib.contextmanager
def short_temporary_names(num_bytes: int) -> Iterator[None]:
    """Let Python's libraries put sockets whose path has `num_bytes` below the temporary folder where they can lie."""
    before, tempfile.tempdir = tempfile.tempdir, str(folder_for_sockets(num_bytes))
    try:
        yield
    finally:
        tempfile.tempdir = before
