"""CPU time by thread: what DALI's threads use is told from what others use."""

import itertools
import threading
import time

import pytest

from benchmarks.gpu import threads
from benchmarks.gpu.threads import ThreadClock, Usage, parsed_stat

TICKS = threads._TICKS_PER_SECOND


@pytest.mark.parametrize("name", ["python", "[DALI][TP0]Exec", "pt main thread", "odd) (name"])
def test_a_line_of_proc_has_name_and_seconds(name):
    line = f"42 ({name}) S 1 2 3 4 5 6 7 8 9 10 {3 * TICKS} {TICKS} 0 0 20 0 9 0 1 2 3"
    assert parsed_stat(line) == (name, 4.0)


def test_time_is_summed_by_role_and_divided_by_the_time_passed(monkeypatch):
    here = threading.get_native_id()
    moments = iter(
        [
            {1: ("[DALI][TP0]Exec", 1.0), 2: ("[DALI] Executor", 0.0), here: ("python", 5.0)},
            {
                1: ("[DALI][TP0]Exec", 3.0),
                2: ("[DALI] Executor", 1.0),
                here: ("python", 9.0),
                3: ("cuda-EvtHandlr", 0.5),
            },
        ]
    )
    monkeypatch.setattr(threads, "_cpu_seconds", lambda: next(moments))
    monkeypatch.setattr(time, "perf_counter", itertools.count(100, 2).__next__)
    usage = ThreadClock().usage()
    assert usage.cores == {"DALI": 1.5, threading.current_thread().name: 2.0, "others": 0.25}
    assert (usage.total, usage.beside_dali) == (3.75, 2.25)


def test_without_dali_all_time_is_beside_it():
    assert Usage({"MainThread": 0.5, "others": 0.25}).beside_dali == 0.75


def test_a_thread_that_works_is_seen():
    clock, end = ThreadClock(), time.thread_time() + 10 / TICKS
    while time.thread_time() < end:
        sum(range(10_000))
    usage = clock.usage()
    assert usage.cores[threading.current_thread().name] > 0 and usage.cores.get("DALI", 0) == 0
