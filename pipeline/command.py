"""What every command of the project shares: how it ends.

A mistake of the person who runs a command is an `InputError`: one line per cause on standard error, which names the
cause and the next step, exit status 2, no traceback. Ctrl-C ends at once with status 130 (SIGTERM with 143). Anything
else is a bug of ours and keeps its traceback.
"""

import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import NoReturn


class InputError(Exception):
    """Input that cannot be used; the message is one line per cause: what is wrong, and what to do."""


class Terminated(BaseException):
    """SIGTERM arrived: unwinds the stack so that temporary files are removed."""


def raise_terminated(signum: int, frame: FrameType | None) -> NoReturn:
    """Signal handler for SIGTERM."""
    raise Terminated


def run_command(main: Callable[[Sequence[str] | None], int]) -> NoReturn:
    """Run `main(None)` as a process's command and exit with its status.

    Args:
        main: The command; gets None (use `sys.argv`) and returns the exit status.
    """
    signal.signal(signal.SIGTERM, raise_terminated)
    try:
        status = main(None)
    except InputError as error:
        sys.stderr.write("".join(f"error: {line}\n" for line in str(error).splitlines()))
        status = 2
    except BrokenPipeError:
        sys.stderr.close()
        status = 141
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        sys.stderr.write(f"error: {error.strerror or error}{where}\n")
        status = 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        status = 130
    except Terminated:
        sys.stderr.write("terminated\n")
        status = 143
    sys.exit(status)
