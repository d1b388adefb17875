"""Workers without Ray: the processes of torchrun, or this very process alone.

torchrun starts the processes, and starts them again where it is told to (`--max-restarts`, with
TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1); they go on from the latest checkpoint. Ctrl-C and SIGTERM stop a run at a
checkpoint; a second Ctrl-C ends it at once.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Literal

import torch
import torch.distributed as dist

from cluster.exchange.collectives import leave_process_group
from cluster.launch.supervisor import WorkersLost
from cluster.worker.torch_quirks import SHARES_STORE, is_lost_peer, unreachable_workers
from cluster.worker.world import World, process_group_backend
from pipeline.command import InputError, Terminated, UserError
from pipeline.system.os_errors import as_user_error


def is_under_torchrun() -> bool:
    """Return whether torchrun started this process."""
    return dist.is_torchelastic_launched()


@contextlib.contextmanager
def local_world(launcher: Literal["torch", "alone"]) -> Iterator[tuple[World, "Signals"]]:
    """Enter the world of which this process is a worker, and leave it at the end.

    Yields:
        The worker's place, and the signals that come while the block runs: they ask the workers to stop.

    Raises:
        UserError: torchrun did not start this process as it should, or it met an error of the operating system.
        WorkersLost: Another process is gone.
    """
    try:
        with _entered(launcher) as entered:
            yield entered
    except BrokenPipeError:  # nobody reads what is written to standard output
        raise
    except OSError as error:
        raise as_user_error(error) from error


@contextlib.contextmanager
def _entered(launcher: Literal["torch", "alone"]) -> Iterator[tuple[World, "Signals"]]:
    if launcher == "torch":
        _check_torchrun()
    has_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if has_gpu else torch.device("cpu")
    if has_gpu:
        torch.cuda.set_device(device)
    if launcher == "alone":
        with _signals_noted() as signals:
            yield World(0, 1, device, signals.have_come), signals
        return
    try:
        dist.init_process_group(process_group_backend(device.type))  # torchrun's environment says where
    except (RuntimeError, ValueError) as error:
        raise UserError(unreachable_workers(error)) from error
    try:
        with _signals_noted() as signals:
            yield World(dist.get_rank(), dist.get_world_size(), device, signals.have_come), signals
    except RuntimeError as error:
        if not is_lost_peer(error):
            raise
        raise WorkersLost("another worker ended; the same command goes on from the latest checkpoint") from error
    finally:
        leave_process_group()


class Signals:
    """SIGINT and SIGTERM that have come."""

    def __init__(self) -> None:
        """Begin with none."""
        self._seen: list[int] = []

    def note(self, signum: int, frame: FrameType | None) -> None:
        """Note a signal, as its handler; a second Ctrl-C raises KeyboardInterrupt."""
        if signum == signal.SIGINT and signum in self._seen:
            raise KeyboardInterrupt
        self._seen.append(signum)

    def have_come(self) -> bool:
        """Return whether there was one."""
        return bool(self._seen)

    def raise_first(self) -> None:
        """Raise KeyboardInterrupt or Terminated, as the first signal would have; nothing where there was none."""
        if self._seen:
            raise KeyboardInterrupt if self._seen[0] == signal.SIGINT else Terminated


def _check_torchrun() -> None:
    """Check that torchrun started this process, in a way that survives a restart.

    Raises:
        InputError: It did not, or processes that it starts again would get the addresses of those before.
    """
    if not is_under_torchrun():
        raise InputError(
            "--launcher torch is for a process of torchrun: torchrun --nproc-per-node 2 -- jobs/train.py ..."
        )
    names = ("TORCHELASTIC_MAX_RESTARTS", SHARES_STORE)
    if missing := [name for name in (*names, "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise InputError(
            f"TORCHELASTIC_RUN_ID is set, but not {missing[0]}, as by torchrun; start this by torchrun, or unset it"
        )
    restarts, shares_store = (os.environ[name] for name in names)
    if int(restarts) and shares_store == "True":
        raise InputError(
            "torchrun --max-restarts works with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 alone: else processes that are "
            "started again meet the addresses of those before (pytorch/pytorch#135712); set it for torchrun"
        )


@contextlib.contextmanager
def _signals_noted() -> Iterator[Signals]:
    """Note SIGINT and SIGTERM while the block runs."""
    signals = Signals()
    before = {signum: signal.signal(signum, signals.note) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
