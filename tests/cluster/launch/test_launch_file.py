"""A worker tells which signal killed it, and learns that its launch is over; processes are really killed."""

import errno
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from cluster.launch.launch_file import LaunchFile


def _die(launch_file: LaunchFile, signum: int) -> None:
    launch_file.watch()
    os.kill(os.getpid(), signum)


def _killed_by(launch_file: LaunchFile, signum: int) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_die, args=(launch_file, signum))
    process.start()
    process.join()
    assert process.exitcode == -signum


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGILL", "SIGFPE"])
def test_the_signal_that_killed_a_process_is_named(tmp_path, name):
    launch_file = LaunchFile(tmp_path / "faults")
    with launch_file.lasting():
        _killed_by(launch_file, getattr(signal, name))
        assert launch_file.told() == name
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_was_cut_while_it_was_mapped_is_told_as_such(tmp_path):
    launch_file = LaunchFile(tmp_path / "faults")
    with launch_file.lasting():
        _killed_by(launch_file, signal.SIGBUS)
        assert launch_file.told().startswith("SIGBUS: a file that it had mapped")
        with launch_file.lasting():  # the next launch
            assert launch_file.told() is None


def test_workers_that_die_at_one_time_write_between_each_others_words(tmp_path):
    launch_file = LaunchFile(tmp_path / "faults")
    with launch_file.lasting():
        words = ["Fatal Python error: ", "Fatal Python error: ", "Bus error", "Bus error", "\n\n", "\n\n"]
        (tmp_path / "faults").write_text("".join(words))
        assert launch_file.told().startswith("SIGBUS: a file that it had mapped")
        (tmp_path / "faults").write_text("Fatal Python error: none_dealloc: of which we know nothing\n\n")
        assert launch_file.told() == "none_dealloc: of which we know nothing"


def test_a_process_that_is_killed_from_outside_has_nothing_to_tell(tmp_path):
    launch_file = LaunchFile(tmp_path / "faults")
    with launch_file.lasting():
        _killed_by(launch_file, signal.SIGKILL)
        assert launch_file.told() is None


def test_where_no_file_can_be_nothing_is_told_and_nothing_fails():
    launch_file = LaunchFile(Path("/nowhere/faults"))
    with launch_file.lasting():
        _killed_by(launch_file, signal.SIGSEGV)
        assert launch_file.told() is None


def test_a_worker_learns_that_its_launch_is_over(tmp_path, monkeypatch):
    monkeypatch.setattr("faulthandler.enable", lambda *_, **__: None)  # that of the tests stays
    of_launcher, of_worker, of_later = (LaunchFile(tmp_path / "launch") for _ in range(3))
    with of_launcher.lasting():
        assert not of_worker.is_over()  # it does not watch yet
        of_worker.watch()
        assert not of_worker.is_over()
    assert of_worker.is_over()
    with of_launcher.lasting():  # others take its place
        of_later.watch()
        assert of_worker.is_over() and not of_later.is_over()
    for worker in (of_worker, of_later):
        os.close(worker._descriptor)


@pytest.mark.parametrize(("code", "is_over"), [(errno.EIO, False), (errno.ETIMEDOUT, False), (errno.ESTALE, True)])
def test_a_disk_out_of_reach_ends_no_worker(code, is_over, tmp_path, monkeypatch):
    launch_file = LaunchFile(tmp_path / "launch")
    launch_file._descriptor = os.open(tmp_path / "launch", os.O_CREAT)

    def fail(path):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("os.stat", fail)
    assert launch_file.is_over() == is_over
    os.close(launch_file._descriptor)
