"""The process that keeps a lab up, and how commands talk to it: a line of JSON each way, by a socket in its folder.

LAB/
  socket       of the keeper; only its user may connect, and no other user's is trusted
  keeper.log   what the keeper had to say after the lab was up
  lock         held while a lab is up

If the keeper is killed, the kernel takes the hosts' networks away, and Ray ends with it; what remains is removed by the
next lab, or by `remove_remains`. As a process, `python -m cluster.lab.keeper` keeps a lab; see `start`.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cluster.lab.cpu_quota import remove_orphaned_quotas
from cluster.lab.hosts import check_rights, end_orphans
from cluster.lab.ray_lab import LabConfig, RayLab, ray_lab
from cluster.lab.ray_node import remove_orphaned_folders
from pipeline.command import InputError, run_command
from pipeline.paths import CHECKOUT

_SOCKET, _LOG, _LOCK = "socket", "keeper.log", "lock"
_LOOK_SECONDS = 1.0
_REQUEST_SECONDS = 5.0
_ANSWER_SECONDS = 300.0  # joining starts a Ray
_BACKLOG = 16
_CREDENTIALS = struct.Struct("3i")  # of SO_PEERCRED: process, user, group


class NoLab(InputError):
    """No lab is up."""


def start(config: LabConfig, folder: Path) -> int:
    """Start a keeper, which outlives this process, and wait until its lab is up; return its exit status if it fails.

    Until then it writes to this process's streams, and Ctrl-C ends it.

    Args:
        config: What the lab consists of.
        folder: Folder of the lab.
    """
    reader, writer = os.pipe()
    arguments = json.dumps(dataclasses.asdict(config)), str(folder), os.getcwd(), str(writer)
    keeper = subprocess.Popen(
        [sys.executable, "-m", "cluster.lab.keeper", *arguments],
        cwd=CHECKOUT,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        pass_fds=[writer],
    )
    os.close(writer)
    try:
        with open(reader, "rb") as word:
            return 0 if word.read() else keeper.wait() or 1
    except BaseException:
        keeper.send_signal(signal.SIGTERM)
        keeper.wait()
        raise


def ask(folder: Path, action: str, about: str = "") -> Any:
    """Ask the keeper for something, and return its answer.

    Args:
        folder: Folder of the lab.
        action: `down`, or one of those of `_answer`.
        about: Host or job that it concerns.

    Raises:
        NoLab: None is up.
        InputError: The keeper refused, is busy, is another user's, or was killed.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_ANSWER_SECONDS)
        try:
            _connect(connection, folder)
            connection.sendall(json.dumps({"action": action, "about": about}).encode() + b"\n")
            with connection.makefile() as stream:
                answer = json.loads(stream.readline())
        except (TimeoutError, BlockingIOError) as error:
            raise InputError(
                f"the keeper of the lab has not answered for {_ANSWER_SECONDS:.0f} s; it may be busy with another "
                f"command: see {folder / _LOG}, and try again"
            ) from error
        except (OSError, ValueError) as error:
            raise InputError(
                f"the keeper of the lab ended meanwhile (see {folder / _LOG}); `python -m cluster.lab down` removes "
                "what is left of it"
            ) from error
    if "error" in answer:
        raise InputError(answer["error"])
    return answer["answer"]


def remove_remains() -> int:
    """Remove what labs have left whose keepers were killed; return the number of processes that were ended."""
    ended = end_orphans()
    remove_orphaned_quotas()
    remove_orphaned_folders()
    return len(ended)


def keep(config: LabConfig, folder: Path, working_directory: Path, writer: int) -> None:
    """Keep a lab up until a command ends it; see `start`.

    Args:
        config: What it consists of.
        folder: Folder of the lab.
        working_directory: Directory that submitted jobs run in.
        writer: Descriptor of a pipe that is told when the lab is up.

    Raises:
        InputError: The lab can't be made, or one is up already.
    """
    check_rights()
    with _locked(folder):
        remove_remains()
        with ray_lab(config, working_directory, _say) as lab, _listener(folder) as listener:
            os.write(writer, b"up")
            os.close(writer)
            _write_to(folder / _LOG)
            asker = _serve(lab, listener)
    with asker:
        _tell(asker, {"answer": "the lab is down"})


def _serve(lab: RayLab, listener: socket.socket) -> socket.socket:
    """Answer commands until one ends the lab; return the connection that waits for that."""
    failure = ""  # the latest of looking after the lab
    while True:
        if select.select([listener], [], [], _LOOK_SECONDS)[0]:
            connection, _ = listener.accept()
            request = _request(connection)
            if request is None:
                connection.close()
            elif request["action"] == "down":
                return connection
            else:
                with connection:
                    _tell(connection, _answer(lab, request["action"], request["about"]))
        try:
            lab.look_after()
        except Exception as error:  # a lab outlives errors of the program
            if repr(error) != failure:  # it comes again each second
                traceback.print_exc()
            failure = repr(error)


def _request(connection: socket.socket) -> dict[str, str] | None:
    """Return what is asked; None if that is no command of ours, or who asked is gone."""
    connection.settimeout(_REQUEST_SECONDS)
    try:
        with connection.makefile() as stream:
            request = json.loads(stream.readline())
        return {name: str(request[name]) for name in ("action", "about")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _answer(lab: RayLab, action: str, about: str) -> dict[str, Any]:
    """Return the answer to a command."""
    actions: dict[str, Callable[[], Any]] = {
        "cut": lambda: lab.cut(about),
        "join": lambda: lab.join(about),
        "kill": lambda: lab.kill(about),
        "status": lab.status,
        "entrance": lambda: dataclasses.asdict(lab.entrance(about)),
        "exit-status": lambda: lab.exit_status(about),
    }
    if action not in actions:
        return {"error": f"the lab's keeper does not know `{action}`; it is of another version: take the lab down"}
    try:
        return {"answer": actions[action]()}
    except (InputError, OSError) as error:
        return {"error": str(error)}
    except Exception as error:  # a lab outlives errors of the program
        traceback.print_exc()
        return {"error": f"`{action}` failed by an error of this program ({error!r}), and the lab goes on; see {_LOG}"}


def _tell(connection: socket.socket, answer: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # who asked is gone
        connection.sendall(json.dumps(answer).encode() + b"\n")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{folder} can't be a lab's folder, since a file is in its place; choose another") from error
    _check_is_own(folder)
    with open(folder / _LOCK, "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"a lab is up already in {folder}; end it with `python -m cluster.lab down`, or choose another --lab"
            ) from None
        yield


def _check_is_own(folder: Path) -> None:
    """Check that no other user can put files, or links to this user's, in the place of a lab's.

    Raises:
        InputError: One can.
    """
    if {folder.lstat().st_uid, folder.stat().st_uid} != {os.geteuid()}:
        raise InputError(f"{folder} is another user's, who could replace the lab's files; choose another --lab")
    if folder.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise InputError(
            f"other users may write to {folder}, and could replace the lab's files; forbid it with "
            f"`chmod go-w {folder}`, or choose another --lab"
        )


def _connect(connection: socket.socket, folder: Path) -> None:
    """Connect to this user's keeper.

    Raises:
        NoLab: None is up.
        InputError: It is another user's.
    """
    try:
        with _short_path(folder) as path:
            connection.connect(path)
        is_own = _user_of(connection) == os.geteuid()
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        raise NoLab(f"no lab is up in {folder}; start one with `python -m cluster.lab up`") from None
    except PermissionError:
        is_own = False
    if not is_own:
        raise InputError(
            f"the lab in {folder} is another user's; run the command as that user, or name a lab of your own: --lab"
        )


def _user_of(connection: socket.socket) -> int:
    """Return the user who listens at the other end of a connection."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(credentials)[1])


@contextlib.contextmanager
def _listener(folder: Path) -> Iterator[socket.socket]:
    """Listen for commands; the folder must be locked."""
    (folder / _SOCKET).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener, _short_path(folder) as path:
        mask = os.umask(0o177)  # nobody else may connect, from the beginning
        try:
            listener.bind(path)
        finally:
            os.umask(mask)
        listener.listen(_BACKLOG)
        try:
            yield listener
        finally:
            (folder / _SOCKET).unlink(missing_ok=True)


@contextlib.contextmanager
def _short_path(folder: Path) -> Iterator[str]:
    """Yield the path of the folder's socket, short enough for one however long the folder's path is."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{_SOCKET}"
    finally:
        os.close(descriptor)


def _write_to(log: Path) -> None:
    """Let this process's streams lead to a file."""
    with open(log, "wb") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the process; see the module."""
    config, folder, working_directory, writer = sys.argv[1:] if argv is None else argv
    keep(LabConfig(**json.loads(config)), Path(folder), Path(working_directory), int(writer))
    return 0


if __name__ == "__main__":
    run_command(main)
