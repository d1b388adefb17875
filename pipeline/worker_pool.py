"""Worker processes that end with the block that uses them, whatever ends it."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from pipeline.command import InputError


@contextmanager
def worker_pool(num_workers: int) -> Iterator[ProcessPoolExecutor]:
    """Give a pool of fresh processes; if the block raises, they are ended at once, their work unfinished.

    Args:
        num_workers: Processes.

    Raises:
        InputError: A worker process was killed.
    """
    # Not forked: the parent may hold threads, and a fresh process inherits no signal handler.
    context = multiprocessing.get_context("spawn")
    before = multiprocessing.active_children()
    pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_start_worker)
    try:
        yield pool
    except BaseException as error:
        for process in multiprocessing.active_children():
            if process not in before:
                process.terminate()
        if isinstance(error, BrokenProcessPool):
            raise InputError("a worker process was killed (out of memory?); run the same command again") from error
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """Let a worker process die with its parent, and at once on Ctrl-C: the parent tidies up."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
