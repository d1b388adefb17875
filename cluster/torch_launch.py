"""Workers without Ray: the processes of torchrun, or this very process alone.

torchrun starts the processes, and starts them again where it is told to (`--max-restarts`); they go on from the latest
checkpoint. Ctrl-C and SIGTERM stop a run at a checkpoint; a second Ctrl-C ends it at once.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Literal

import torch
import torch.distributed as dist

from cluster.supervisor import WorkersLost
from cluster.world import World, is_lost_peer, process_group_backend
from pipeline.command import InputError, Terminated


def is_under_torchrun() -> bool:
    """Return whether torchrun started this process."""
    return dist.is_torchelastic_launched()


@contextlib.contextmanager
def here(launcher: Literal["torch", "alone"]) -> Iterator[World]:
    """Enter the world of which this process is a worker, and leave it at the end.

    Raises:
        InputError: torchrun did not start this process.
        WorkersLost: Another process is gone.
        KeyboardInterrupt, Terminated: The signal had come, and the block has ended in its own time.
    """
    if launcher == "torch" and not is_under_torchrun():
        raise InputError("--launcher torch is for a process of torchrun: torchrun --nproc-per-node 2 jobs/train.py ...")
    has_gpu = torch.cuda.is_available()
    local_rank = int(os.environ["LOCAL_RANK"]) if launcher == "torch" else 0
    device = torch.device("cuda", local_rank) if has_gpu else torch.device("cpu")
    if has_gpu:
        torch.cuda.set_device(device)
    with _signals_noted() as seen:
        if launcher == "alone":
            yield World(0, 1, device, lambda: bool(seen))
        else:
            dist.init_process_group(process_group_backend(device.type))  # torchrun's environment says where
            try:
                yield World(dist.get_rank(), dist.get_world_size(), device, lambda: bool(seen))
            except RuntimeError as error:
                if not is_lost_peer(error):
                    raise
                raise WorkersLost(
                    "another worker ended; the same command goes on from the latest checkpoint, and torchrun "
                    "--max-restarts does so by itself"
                ) from error
            finally:
                dist.destroy_process_group()
    if seen:
        raise KeyboardInterrupt if seen[0] == signal.SIGINT else Terminated


@contextlib.contextmanager
def _signals_noted() -> Iterator[list[int]]:
    """Give a list of the signals that came while the block runs; a second Ctrl-C raises KeyboardInterrupt."""
    seen: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and signum in seen:
            raise KeyboardInterrupt
        seen.append(signum)

    before = {signum: signal.signal(signum, note) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
