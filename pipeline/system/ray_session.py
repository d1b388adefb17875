"""Ray sessions: a local Ray is locked with a private token, a running cluster keeps its own rules.

Environment variables are set only while a session lasts.
"""

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from pipeline.command import InputError, raise_terminated
from pipeline.system import ray_quirks
from pipeline.system.ray_token import private_token
from pipeline.system.surroundings import folder_for_sockets, holds_sockets, variables_set, without_proxy

_ALSO_CHANGED = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ADDRESS", "TMPDIR")
_CONNECT_SECONDS = 10.0
_SOCKET_BYTES = 80  # ray-USER/session_DATE_TIME_PID/sockets/plasma_store and a number
_OWN_TOKEN = private_token()["RAY_AUTH_TOKEN"]  # one per process: Ray keeps the first token that it has read


@contextlib.contextmanager
def ray_session(address: str) -> Iterator[None]:
    """Start or join Ray, and shut it down or leave it at the end of the block.

    Args:
        address: `local` starts a Ray for this process alone, without a dashboard; `auto` joins the running cluster:
            that of a submitted job (RAY_ADDRESS), otherwise this machine's.

    Raises:
        InputError: No cluster answers, or the cluster refuses this process.
    """
    defaults = ray_quirks.SESSION_VARIABLES
    if address == "local":
        defaults = defaults | ray_quirks.OWN_RAY_VARIABLES | ray_quirks.EMBEDDED_RAY_VARIABLES
    defaults = {name: value for name, value in defaults.items() if name not in os.environ}
    with variables_set(defaults | without_proxy(os.environ), *_ALSO_CHANGED):
        if address == "local":
            _start_local()
        else:
            _join(address)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, raise_terminated)  # replaces Ray's handler, which aborts the process
        try:
            yield
        finally:
            ray.shutdown()


def has_cluster() -> bool:
    """Return whether RAY_ADDRESS names a cluster to join; if it is empty or `local`, it does not."""
    return os.environ.get("RAY_ADDRESS", "").strip() not in ("", "local")


def _start_local() -> None:
    # If a mode was set, Ray read it when it was imported. Without a mode, a new local Ray uses the token that it finds.
    os.environ.pop("RAY_AUTH_MODE", None)
    os.environ["RAY_AUTH_TOKEN"] = _OWN_TOKEN
    ray_quirks.keep_quiet_about_tokens()
    os.environ.pop("RAY_ADDRESS", None)  # is empty or `local`; processes that Ray starts would look for a cluster there
    options = _temporary_folder()
    if options:  # Ray's processes put their own sockets there
        os.environ["TMPDIR"] = str(Path(options["_temp_dir"]).parent)
    _init("local", include_dashboard=False, **options)


def _join(address: str) -> None:
    cluster = os.environ.get("RAY_ADDRESS", "").strip()
    if not cluster:
        os.environ.pop("RAY_ADDRESS", None)  # is empty
    _check_address(cluster)
    try:
        host, _, port = cluster.removeprefix("ray://").rpartition(":")
        if host:  # a dead address fails here at once; Ray would try for minutes
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
        _init(address)
    except (OSError, ValueError, ray.exceptions.AuthenticationError) as error:
        at = f"at RAY_ADDRESS={cluster}" if cluster else "here"
        if isinstance(error, ray.exceptions.AuthenticationError) or ray_quirks.is_refusal(error):
            raise InputError(
                f"the Ray cluster {at} wants a token that this process does not give; set RAY_AUTH_MODE=token and copy "
                "~/.ray/auth_token from the cluster's head"
            ) from error
        next_step = "start it, or unset the variable" if cluster else "run `ray start --head`"
        raise InputError(f"no Ray cluster answers {at}; {next_step}") from error


def _check_address(address: str) -> None:
    """Raise InputError if RAY_ADDRESS can't be the address of a running cluster.

    An empty value counts as unset, and `auto` means this machine's cluster.
    """
    if address in ("", "auto"):
        return
    if address.startswith(("http://", "https://")):
        raise InputError(
            f"RAY_ADDRESS={address} is the address of a job server, which takes jobs: `ray job submit --address "
            f"{address} --working-dir . -- python ...`; to join the cluster from here, set RAY_ADDRESS=HOST:6379, or "
            "`auto` on one of its nodes"
        )
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not (port.isdigit() and 0 < int(port) < 65536):
        raise InputError(
            f"RAY_ADDRESS={address} is not an address of a running cluster; set HOST:6379, or `auto` on one of its "
            "nodes, or unset it"
        )


def _temporary_folder() -> dict[str, str]:
    """Return the option that tells a local Ray where to keep logs and sockets; empty if Ray's own choice works."""
    chosen = Path(os.environ.get("RAY_TMPDIR", os.environ.get("TMPDIR", "/tmp")))
    if chosen.is_absolute() and holds_sockets(chosen, _SOCKET_BYTES):
        return {}
    return {"_temp_dir": str(folder_for_sockets(_SOCKET_BYTES) / f"ray-{os.getuid()}")}


def _init(address: str, **options: Any) -> None:
    ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, **options)
