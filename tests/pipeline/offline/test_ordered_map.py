import multiprocessing
import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from pipeline.command import InputError
from pipeline.offline.ordered_map import CHUNKS_PER_PROCESS, ordered_map

_LONGEST_WAIT_SECONDS = 30  # for what takes a fraction of one


def answer(number: int) -> tuple[int, bytes, int]:
    """Take a time that does not grow with the number."""
    time.sleep(0.002 * (number % 3))
    return number, bytes(100_000), os.getpid()


def fail_at_five(number: int) -> int:
    if number == 5:
        raise ValueError("five")
    return number


def die_while_sending(number: int) -> bytes:
    """Item 1's process is killed in the middle of a result that fills the pipe."""
    if number == 1:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        time.sleep(0.03)
    return bytes(50_000_000 if number == 1 else 10)


@pytest.mark.parametrize(("num_processes", "chunk_size"), [(1, 1), (2, 1), (3, 4)])
def test_results_come_in_order_from_the_processes_asked_for(num_processes, chunk_size):
    with ordered_map(answer, range(31), num_processes, chunk_size) as results:
        numbers, contents, processes = zip(*results, strict=True)
    assert numbers == tuple(range(31))
    assert set(contents) == {bytes(100_000)}
    assert len(set(processes)) == num_processes
    assert (os.getpid() in processes) == (num_processes == 1)
    assert multiprocessing.active_children() == []


def test_nothing_to_do_is_no_error():
    with ordered_map(answer, [], 2) as results:
        assert list(results) == []


def test_what_the_function_raises_is_raised_with_a_note_of_where():
    with pytest.raises(ValueError, match="five") as caught, ordered_map(fail_at_five, range(20), 2) as results:
        list(results)
    assert "in fail_at_five" in caught.value.__notes__[0]
    assert multiprocessing.active_children() == []


def test_a_process_that_ends_by_itself_is_noticed():
    with pytest.raises(RuntimeError, match="ended with status 3"), ordered_map(os._exit, [3, 3], 2) as results:
        list(results)


def test_a_process_killed_while_it_sends_is_noticed():
    with (
        pytest.raises(InputError, match="a worker process was killed"),
        ordered_map(die_while_sending, range(9), 2) as r,
    ):
        next(r)
        time.sleep(0.2)  # nobody reads: the result of item 1 can't be sent to its end
        list(r)


def test_an_exception_in_the_block_ends_the_processes():
    with pytest.raises(KeyboardInterrupt), ordered_map(answer, range(1000), 2) as results:
        next(results)
        assert len(multiprocessing.active_children()) == 2
        raise KeyboardInterrupt
    assert multiprocessing.active_children() == []


def count_begun(number: int, folder: Path, awaited: int) -> int:
    """Return how many items have begun; the first waits until `awaited` have, and for any that follow.

    It does not wait for ever: where fewer may begin, their number tells.
    """
    (folder / str(number)).touch()
    deadline = time.monotonic() + _LONGEST_WAIT_SECONDS
    while number == 0 and len(list(folder.iterdir())) < awaited and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.5 * (number == 0))
    return len(list(folder.iterdir()))


def test_no_more_than_a_few_chunks_are_begun_behind_a_slow_one(tmp_path):
    num_processes, chunk_size = 3, 2
    bound = CHUNKS_PER_PROCESS * num_processes * chunk_size
    awaited = bound - 1  # the slow chunk's second item waits for its first
    function = partial(count_begun, folder=tmp_path, awaited=awaited)
    with ordered_map(function, range(2 * bound), num_processes, chunk_size) as results:
        counts = list(results)
    assert counts[0] == awaited
    assert len(counts) == 2 * bound and max(counts) == 2 * bound  # and all the rest came after it
