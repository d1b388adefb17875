"""The mark of a launch: what says that it is over, and what says nothing."""

import errno
import os
import pickle

import pytest

from cluster.run.launch_mark import CURRENT_LAUNCH, LaunchMark


def _of_worker(mark):
    return pickle.loads(pickle.dumps(mark))


def test_workers_learn_that_their_launch_has_ended_or_another_is_under_way(tmp_path):
    mark, next_mark = LaunchMark(tmp_path), LaunchMark(tmp_path)
    worker, worker_of_next = _of_worker(mark), _of_worker(next_mark)
    with mark.lasting():
        assert not worker.is_over()
    assert worker.is_over()
    assert not worker_of_next.is_over()  # what it sees was written before its launch
    with next_mark.lasting():
        assert worker.is_over() and not worker_of_next.is_over()
    assert [path.name for path in tmp_path.iterdir()] == [CURRENT_LAUNCH]


@pytest.mark.parametrize("content", ["", "0123456789abcdef", "over", "\x00" * 33, "Fatal Python error: Aborted\n\n"])
def test_a_file_that_is_not_whole_says_nothing(content, tmp_path):
    mark = LaunchMark(tmp_path)
    with mark.lasting():
        assert not mark.is_over()
        (tmp_path / CURRENT_LAUNCH).write_text(content)
        assert not mark.is_over()


@pytest.mark.parametrize("code", [errno.ENOENT, errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.EACCES])
def test_a_file_out_of_reach_says_nothing(code, tmp_path, monkeypatch):
    mark = LaunchMark(tmp_path)

    def fail(*_, **__):
        raise OSError(code, os.strerror(code))

    with mark.lasting():
        assert not mark.is_over()
        with monkeypatch.context() as patch:
            patch.setattr("pathlib.Path.read_text", fail)
            assert not mark.is_over()


def test_a_launcher_that_was_replaced_does_not_end_the_next_launch(tmp_path):
    replaced, mark = LaunchMark(tmp_path), LaunchMark(tmp_path)
    with mark.lasting():
        with replaced.lasting():
            (tmp_path / CURRENT_LAUNCH).write_text(f"{mark._id}\n")  # while it was held up
        assert not mark.is_over()


def test_where_nothing_can_be_written_nothing_is_told_and_nothing_fails(tmp_path):
    mark = LaunchMark(tmp_path / "missing")
    with mark.lasting():
        assert not mark.is_over()
    assert not mark.is_over()
