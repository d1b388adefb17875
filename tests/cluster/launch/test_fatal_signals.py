"""A process that a signal kills tells which one; processes are really killed."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from cluster.launch.fatal_signals import FatalSignals


def _die(signals: FatalSignals, signum: int) -> None:
    signals.watch()
    os.kill(os.getpid(), signum)


def _killed_by(signals: FatalSignals, signum: int) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_die, args=(signals, signum))
    process.start()
    process.join()
    assert process.exitcode == -signum


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGILL", "SIGFPE"])
def test_the_signal_that_killed_a_process_is_named(tmp_path, name):
    signals = FatalSignals(tmp_path / "faults")
    with signals.expected():
        _killed_by(signals, getattr(signal, name))
        assert signals.told() == name
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_was_cut_while_it_was_mapped_is_told_as_such(tmp_path):
    signals = FatalSignals(tmp_path / "faults")
    with signals.expected():
        _killed_by(signals, signal.SIGBUS)
        assert signals.told().startswith("SIGBUS: a file that it had mapped")
        with signals.expected():  # the next launch
            assert signals.told() is None


def test_workers_that_die_at_one_time_write_between_each_others_words(tmp_path):
    signals = FatalSignals(tmp_path / "faults")
    with signals.expected():
        words = ["Fatal Python error: ", "Fatal Python error: ", "Bus error", "Bus error", "\n\n", "\n\n"]
        (tmp_path / "faults").write_text("".join(words))
        assert signals.told().startswith("SIGBUS: a file that it had mapped")
        (tmp_path / "faults").write_text("Fatal Python error: none_dealloc: of which we know nothing\n\n")
        assert signals.told() == "none_dealloc: of which we know nothing"


def test_a_process_that_is_killed_from_outside_has_nothing_to_tell(tmp_path):
    signals = FatalSignals(tmp_path / "faults")
    with signals.expected():
        _killed_by(signals, signal.SIGKILL)
        assert signals.told() is None


def test_where_no_file_can_be_nothing_is_told_and_nothing_fails():
    signals = FatalSignals(Path("/nowhere/faults"))
    with signals.expected():
        _killed_by(signals, signal.SIGSEGV)
        assert signals.told() is None
