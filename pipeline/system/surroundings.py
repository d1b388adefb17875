"""The environment of a process: folders for temporary files, proxies. Standard library only.

Environment variables are changed only for the duration of a call or for a child process, never permanently.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.command import InputError

_SOCKET_BYTES = 107  # maximum length of a Unix socket's path on Linux
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")  # each in lower and upper case
RAY_ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Variables from which `ray job submit` takes its address, in its order; each goes before `--address`."""
RAY_JOB_SERVER = "http://127.0.0.1:8265"
"""Where Ray's job server answers unless `ray start` is told otherwise."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@contextlib.contextmanager
def variables_set(variables: Mapping[str, str], *also_kept: str) -> Iterator[None]:
    """Set environment variables while the block runs, then restore them, and those in `also_kept`."""
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
    """Return variables that exempt this machine and `hosts` from an environment's proxy.

    Empty if there is no proxy. Existing exemptions are kept.
    """
    if proxy_of_environment(environment) is None:
        return {}
    stated = ",".join(environment.get(name, "") for name in ("no_proxy", "NO_PROXY")).split(",")
    names = [name.strip() for name in (*stated, *LOOPBACK, *hosts)]
    # `*` (no proxy for any host) only works on its own, not in a list.
    value = "*" if "*" in names else ",".join(dict.fromkeys(name for name in names if name))
    return {"no_proxy": value, "NO_PROXY": value}


def folder_for_sockets(num_bytes: int) -> Path:
    """Return a folder for temporary files with a path short enough for Unix sockets below it: TMPDIR, else /tmp.

    Args:
        num_bytes: Length of a socket's path below the folder, in bytes.

    Raises:
        InputError: Neither folder is both writable and short enough.
    """
    usual = usual_temporary_folder()
    for folder in dict.fromkeys((usual, Path("/tmp"))):
        if holds_sockets(folder, num_bytes):
            return folder
    raise InputError(
        f"TMPDIR={usual} is too long for sockets below it, and /tmp can't be written to; set TMPDIR to a folder whose "
        f"path has at most {_SOCKET_BYTES - num_bytes} characters"
    )


def holds_sockets(folder: Path, num_bytes: int) -> bool:
    """Return whether a folder is writable, and short enough for sockets with `num_bytes` more bytes in their paths."""
    return len(os.fsencode(folder)) + num_bytes <= _SOCKET_BYTES and os.access(folder, os.W_OK | os.X_OK)


def usual_temporary_folder() -> Path:
    """Return the folder for temporary files: TMPDIR if it is writable, else the system's.

    Raises:
        InputError: No folder is writable.
    """
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise InputError(f"no folder for temporary files is writable ({error}); set TMPDIR to one that is") from error


@contextlib.contextmanager
def short_temporary_names(num_bytes: int) -> Iterator[None]:
    """Make Python's libraries use a temporary folder short enough for sockets with `num_bytes` more bytes."""
    before, tempfile.tempdir = tempfile.tempdir, str(folder_for_sockets(num_bytes))
    try:
        yield
    finally:
        tempfile.tempdir = before
