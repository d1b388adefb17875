"""A `map` over worker processes: results in order, however large, and no process outlives the block that uses it.

Each process has its own pipe. So the death of a process is noticed at once, even in the middle of a result; the reader
of a shared queue would wait for the rest of that result for ever.

The processes are forked from a server that has none of this process's threads and locks. The server loads the modules
that they need only once.
"""

import gc
import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeAlias, TypeVar, cast

from pipeline.command import InputError
from pipeline.system.surroundings import short_temporary_names

Item = TypeVar("Item")
Result = TypeVar("Result")
_Pipe: TypeAlias = "Connection[Any, Any]"
_SOCKET_BYTES = 48  # length of the paths of multiprocessing's sockets below the temporary folder
CHUNKS_PER_PROCESS = 4  # begun but not yet read; so processes seldom wait for one that is a few times slower


def load_ahead(*modules: str) -> None:
    """Begin to load modules for the processes of a later `ordered_map`; returns at once.

    This is for modules that take long to import. It has no effect once the first process has been started.
    """
    multiprocessing.set_forkserver_preload(list(modules))
    with _without_interrupts():
        forkserver.ensure_running()


@contextmanager
def ordered_map(
    function: Callable[[Item], Result], items: Sequence[Item], num_processes: int, chunk_size: int = 1
) -> Iterator[Iterator[Result]]:
    """Give `map(function, items)`, computed by several processes; if the block raises, they are ended at once.

    A process gets its next chunk when it has returned one and the results are being read. At most `CHUNKS_PER_PROCESS`
    chunks per process are begun but not yet read, so that few results wait in memory behind a slow chunk.

    Args:
        function: Function to apply to each item; picklable.
        items: Arguments of the function; picklable.
        num_processes: Number of processes; with 1, this process does the work.
        chunk_size: Number of items that a process gets at a time.

    Raises:
        InputError: A process was killed.
        Exception: The function raised it; a note gives the traceback in the worker process.
    """
    if num_processes == 1:
        yield map(function, items)
        return
    chunks = [items[start : start + chunk_size] for start in range(0, len(items), chunk_size)]
    workers: dict[_Pipe, BaseProcess] = {}
    try:
        for _ in range(min(num_processes, len(chunks))):
            pipe, process = _start(function)
            workers[pipe] = process
        yield _results(workers, chunks)
    finally:
        for pipe, process in workers.items():
            process.terminate()
            process.join()
            pipe.close()


def _start(function: Callable[[Item], Result]) -> tuple[_Pipe, BaseProcess]:
    context = multiprocessing.get_context("forkserver")
    pipe, far_end = context.Pipe()
    process = context.Process(target=_work, args=(function, far_end), daemon=True)
    with _without_interrupts():
        process.start()
    far_end.close()  # otherwise the pipe of a dead process would seem open
    return pipe, process


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Start processes in the block that ignore Ctrl-C; this process ends them."""
    resource_tracker.ensure_running()  # else the first start would start it, and lift the mask that processes inherit
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with short_temporary_names(_SOCKET_BYTES):
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _results(workers: dict[_Pipe, BaseProcess], chunks: list[Sequence[Item]]) -> Iterator[Any]:
    waiting, idle = deque(enumerate(chunks)), deque(workers)
    under_way: dict[_Pipe, int] = {}
    finished: dict[int, list[Any]] = {}

    def give(end: int) -> None:
        while idle and waiting and waiting[0][0] < end:
            pipe = idle.popleft()
            under_way[pipe], chunk = waiting.popleft()
            with suppress(BrokenPipeError):  # the process is dead, which waiting for its answer reports
                pipe.send(chunk)

    for number in range(len(chunks)):
        end = number + CHUNKS_PER_PROCESS * len(workers)
        give(end)
        while True:
            for ready in wait(list(under_way), timeout=0 if number in finished else None):
                pipe = cast(_Pipe, ready)
                finished[under_way.pop(pipe)] = _receive(pipe, workers[pipe])
                idle.append(pipe)
            give(end)
            if number in finished:
                break
        yield from finished.pop(number)


def _receive(pipe: _Pipe, process: BaseProcess) -> list[Any]:
    try:
        answer: list[Any] | Exception = pipe.recv()
    except (EOFError, OSError) as error:
        process.join()
        if process.exitcode is not None and process.exitcode < 0:
            raise InputError("a worker process was killed (out of memory?); run the same command again") from error
        raise RuntimeError(f"a worker process ended with status {process.exitcode}; see above") from error
    if isinstance(answer, Exception):
        raise answer
    return answer


def _work(function: Callable[[Item], Result], pipe: _Pipe) -> None:
    """Runs in a worker process: answers chunks until the pipe is closed, and ends when the parent ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    gc.freeze()  # keeps the garbage collector from examining all imported objects again and again
    while True:
        try:
            chunk = pipe.recv()
        except EOFError:
            return
        answer: list[Result] | Exception
        try:
            answer = [function(item) for item in chunk]
        except Exception as error:
            error.add_note(f"in a worker process:\n{traceback.format_exc()}")
            answer = error
        try:
            pipe.send(answer)
        except BrokenPipeError:
            return
