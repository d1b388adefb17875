"""A worker tells which signal killed it; processes are really killed."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from cluster.launch.last_words import LastWords


def _die(last_words: LastWords, signum: int) -> None:
    last_words.prepare()
    os.kill(os.getpid(), signum)


def _killed_by(last_words: LastWords, signum: int) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_die, args=(last_words, signum))
    process.start()
    process.join()
    assert process.exitcode == -signum


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGILL", "SIGFPE"])
def test_the_signal_that_killed_a_process_is_named(tmp_path, name):
    last_words = LastWords(tmp_path)
    with last_words.kept():
        _killed_by(last_words, getattr(signal, name))
        assert last_words.told() == name
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_was_cut_while_it_was_mapped_is_told_as_such(tmp_path):
    last_words = LastWords(tmp_path)
    with last_words.kept():
        _killed_by(last_words, signal.SIGBUS)
        assert last_words.told().startswith("SIGBUS: a file that it had mapped")
        with (next_launch := LastWords(tmp_path)).kept():
            assert next_launch.told() is None


def test_workers_that_die_at_one_time_write_between_each_others_words(tmp_path):
    last_words = LastWords(tmp_path)
    with last_words.kept():
        words = ["Fatal Python error: ", "Fatal Python error: ", "Bus error", "Bus error", "\n\n", "\n\n"]
        (file,) = tmp_path.iterdir()
        file.write_text("".join(words))
        assert last_words.told().startswith("SIGBUS: a file that it had mapped")
        file.write_text("Fatal Python error: none_dealloc: of which we know nothing\n\n")
        assert last_words.told() == "none_dealloc: of which we know nothing"


def test_a_process_that_is_killed_from_outside_has_nothing_to_tell(tmp_path):
    last_words = LastWords(tmp_path)
    with last_words.kept():
        _killed_by(last_words, signal.SIGKILL)
        assert last_words.told() is None


def test_where_no_file_can_be_nothing_is_told_and_nothing_fails():
    last_words = LastWords(Path("/nowhere"))
    with last_words.kept():
        _killed_by(last_words, signal.SIGSEGV)
        assert last_words.told() is None


def test_a_file_that_is_invisible_at_first_is_used_as_soon_as_it_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "faulthandler.enable", lambda file, **_: os.write(file, b"Bus error")
    )  # that of the tests stays
    last_words = LastWords(tmp_path)
    last_words.prepare()
    with last_words.kept():
        assert last_words.told() is None
        last_words.prepare()
        assert last_words.told().startswith("SIGBUS")
        last_words.prepare()
    os.close(last_words._descriptor)
