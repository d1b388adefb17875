"""Logs of JSON lines: one writer at a time, torn lines are skipped."""

import errno
import json
import threading
import time
from pathlib import Path

import pytest

from cluster.run import follower
from cluster.run.json_log import JsonLog
from cluster.run.run_log import Line, Stopped
from pipeline.command import InputError


def read_entries(path: Path) -> list[dict]:
    """Return the whole lines; a torn one may stand between them."""
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def test_each_entry_says_when_it_was_written(tmp_path):
    log = JsonLog(tmp_path / "log.jsonl")
    began = time.time()
    log.write("step", step=1)
    log.write("stop")
    log.close()
    first, second = read_entries(tmp_path / "log.jsonl")
    assert (first["kind"], first["step"], second["kind"]) == ("step", 1, "stop")
    assert began - 0.01 <= first["time"] <= second["time"] <= time.time() + 0.01


def test_a_line_torn_by_a_kill_is_closed_off_and_passed_over(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"kind": "step"}\n{"kind": "st')
    log = JsonLog(path)
    log.write("stop")
    log.close()
    assert [entry["kind"] for entry in read_entries(path)] == ["step", "stop"]


def test_a_second_writer_is_refused_or_waits_for_the_end_of_the_first(tmp_path):
    path = tmp_path / "log.jsonl"
    first = JsonLog(path)
    first.write("first")
    with pytest.raises(InputError, match="is being written by another job"):
        JsonLog(path)
    threading.Timer(0.3, first.close).start()
    second = JsonLog(path, wait_seconds=30)
    second.write("second")
    second.close()
    assert [entry["kind"] for entry in read_entries(path)] == ["first", "second"]


def test_a_follower_outlives_a_file_system_that_is_out_of_reach_for_a_moment(tmp_path, monkeypatch):
    path, failures = tmp_path / "metrics.jsonl", [OSError(errno.ESTALE, "Stale file handle")] * 2
    monkeypatch.setattr(follower, "_POLL_SECONDS", 0.001)

    def opened(*arguments):
        if failures:
            raise failures.pop()
        return open(*arguments)

    monkeypatch.setattr(follower, "open", opened, raising=False)
    seen: list[Line] = []
    with follower.Follower(path, seen.append):
        path.write_text('{"kind": "stop", "step": 4}\n')
        while failures:
            time.sleep(0.001)
    assert seen == [Stopped(step=4)]


def test_a_line_that_cannot_be_written_fails_once():
    log = JsonLog(Path("/dev/full"))
    with pytest.raises(OSError, match="No space left on device"):
        log.write("step", step=1)
    log.close()


def test_a_line_torn_by_an_error_is_closed_off_by_the_next(tmp_path, monkeypatch):
    path = tmp_path / "log.jsonl"
    log = JsonLog(path)
    full, whole = _DiskThatFills(log._file), log._file
    monkeypatch.setattr(log, "_file", full)
    with pytest.raises(OSError, match="No space left on device"):
        log.write("torn")
    monkeypatch.setattr(log, "_file", whole)
    log.write("stop")
    log.close()
    assert path.read_bytes().startswith(b'{"ki\n') and [entry["kind"] for entry in read_entries(path)] == ["stop"]


class _DiskThatFills:
    """Takes four bytes, then none."""

    def __init__(self, file):
        self._file, self._has_room = file, True

    def write(self, content):
        if not self._has_room:
            raise OSError(errno.ENOSPC, "No space left on device")
        self._has_room = False
        return self._file.write(content[:4])
