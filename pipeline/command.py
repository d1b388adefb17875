"""Errors and exit statuses shared by all commands of the project.

An error that the user must know of or fix is a `UserError`: one line per cause on standard error that names the cause
and the next step, exit status 2, no traceback. Most are an `InputError`: input that cannot be used. Ctrl-C ends a
command at once with status 130, SIGTERM with 143. Any other exception is a bug and keeps its traceback.
"""

import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import NoReturn

_NO_WORKING_DIRECTORY = "the working directory was removed; change to one that exists"


class UserError(Exception):
    """Error for the person who runs a command; the message has one line per cause: what is wrong, and what to do."""


class InputError(UserError):
    """Input that cannot be used."""


class Terminated(BaseException):
    """SIGTERM arrived; unwinds the stack so that temporary files are removed."""


def raise_terminated(signum: int, frame: FrameType | None) -> NoReturn:
    """Handle SIGTERM by raising `Terminated`."""
    raise Terminated


def run_command(main: Callable[[Sequence[str] | None], int]) -> NoReturn:
    """Run `main(None)` as the command of this process, and exit with its status.

    Args:
        main: Command to run; takes None (meaning `sys.argv`) and returns the exit status.
    """
    signal.signal(signal.SIGTERM, raise_terminated)
    _prepare_streams()
    try:
        status = main(None)
    except UserError as error:
        sys.stderr.write("".join(f"error: {line}\n" for line in str(error).splitlines()))
        status = 2
    except BrokenPipeError:
        sys.stderr.close()
        status = 141
    except UnicodeEncodeError:
        if sys.getfilesystemencoding() == "utf-8":
            raise
        sys.stderr.write(
            f"error: this locale encodes file names in {sys.getfilesystemencoding()}, and a name has other letters; "
            "set LC_ALL=C.UTF-8, and unset PYTHONUTF8\n"
        )
        status = 2
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        cause = f"{error.strerror or error}{where}"
        sys.stderr.write(f"error: {cause if _has_working_directory() else _NO_WORKING_DIRECTORY}\n")
        status = 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        status = 130
    except Terminated:
        sys.stderr.write("terminated\n")
        status = 143
    sys.exit(status)


def called_as(module: str) -> str:
    """Return the words that called this command: `alexnet NAME`, or else `python -m MODULE`."""
    name = sys.argv[0]
    return name if name.startswith(("alexnet ", "python -m jobs ")) else f"python -m {module}"


def _prepare_streams() -> None:
    """Let any text be written to the standard streams, whatever the locale; connect closed ones to the null device.

    Otherwise, libraries and child processes would take a file that is opened later for the closed stream.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdin = sys.stdin or open(0, closefd=False)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)
    sys.stderr = sys.stderr or open(2, "w", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # even in UTF-8: a file's name may hold undecodable bytes
            stream.reconfigure(errors="backslashreplace")


def _has_working_directory() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True
