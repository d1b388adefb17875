"""What Python 3.11 lacks of Linux: network namespaces, and processes that end with their parent."""

import contextlib
import ctypes
import errno
import os
import signal
import time
from collections.abc import Callable, Iterator

from pipeline.command import InputError

_CLONE_NEWNET, _PR_SET_PDEATHSIG = 0x40000000, 1
_THIS_THREADS = "/proc/thread-self/ns/net"
_POLL_SECONDS = 0.01
_LIBC = ctypes.CDLL(None, use_errno=True)


def ended_with_parent(number: signal.Signals) -> Callable[[], None]:
    """Return a `preexec_fn` that asks the kernel to send the process a signal when its parent dies, be it by SIGKILL.

    Strictly, when the parent's thread that started it ends. What it starts in turn lives on.
    """
    return lambda: _LIBC.prctl(_PR_SET_PDEATHSIG, number)


class NetworkNamespace:
    """A network of its own: interfaces, addresses, routes and ports.

    It has no name, so it exists as long as a process is in it or has it open, as this object does. The kernel removes
    it and its virtual interfaces after the last one has ended, however that ended.
    """

    def __init__(self) -> None:
        """Create it.

        Raises:
            InputError: This process may not.
        """
        with _thread_returns():
            if _LIBC.unshare(_CLONE_NEWNET) != 0:
                raise _refusal()
            self._descriptor = os.open(_THIS_THREADS, os.O_RDONLY)
        self._inode = os.fstat(self._descriptor).st_ino

    @property
    def path(self) -> str:
        """Path by which other processes reach it."""
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Let this thread be in the namespace: processes that it starts and sockets that it opens stay there."""
        with _entered(self._descriptor):
            yield

    def process_ids(self) -> list[int]:
        """Return the ids of the processes in it, but for this one."""
        others = (int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid())
        return [process_id for process_id in others if network_of(process_id) == self._inode]

    def kill(self) -> None:
        """End the processes in it by SIGKILL."""
        while processes := self.process_ids():  # including what was started meanwhile
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(_POLL_SECONDS)

    def close(self) -> None:
        """End the processes in it, and leave it to the kernel."""
        self.kill()
        os.close(self._descriptor)


@contextlib.contextmanager
def network_entered(path: str) -> Iterator[None]:
    """Let this thread be in another process's namespace; see `NetworkNamespace.entered`.

    Args:
        path: Path of the namespace, as that process has it.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with _entered(descriptor):
            yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _entered(descriptor: int) -> Iterator[None]:
    with _thread_returns():
        if _LIBC.setns(descriptor, _CLONE_NEWNET) != 0:
            raise _refusal()
        yield


@contextlib.contextmanager
def _thread_returns() -> Iterator[None]:
    """Let this thread return to its present namespace after the block."""
    present = os.open(_THIS_THREADS, os.O_RDONLY)
    try:
        yield
    finally:
        _LIBC.setns(present, _CLONE_NEWNET)
        os.close(present)


def network_of(process_id: int | str) -> int | None:
    """Return the inode of a process's network namespace; None if it ends (a zombie has none) or may not be read."""
    try:
        return os.stat(f"/proc/{process_id}/ns/net").st_ino
    except OSError:
        return None


def _refusal() -> Exception:
    number = ctypes.get_errno()
    if number == errno.EPERM:
        return InputError(
            "this process may not make network namespaces; run the command as root, in a container with "
            "--cap-add SYS_ADMIN --cap-add NET_ADMIN"
        )
    return OSError(number, f"network namespaces: {os.strerror(number)}")
