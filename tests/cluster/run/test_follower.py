"""The lines of a log as it grows."""

import time

import pytest

from cluster.run.follower import Follower
from cluster.run.run_log import Line, RunLog, Stopped


@pytest.mark.parametrize("from_start", [True, False])
def test_lines_are_passed_on_once_and_in_order_to_the_last(from_start, tmp_path):
    log, seen = RunLog(tmp_path / "metrics.jsonl"), []
    log.write(Stopped(step=1))
    with Follower(tmp_path / "metrics.jsonl", seen.append, from_start=from_start):
        log.write(Stopped(step=2))
        while len(seen) < 1 + from_start:
            time.sleep(0.01)
        with open(tmp_path / "metrics.jsonl", "a") as file:
            file.write('{"kind": "stop", "st')  # torn by a kill
            file.write("\n")
        log.write(Stopped(step=3))
    assert seen == [Stopped(step=step) for step in ((1, 2, 3) if from_start else (2, 3))]
    log.close()


def test_an_error_of_the_function_is_raised_at_the_end_and_hides_no_other(tmp_path):
    def fail(line: Line) -> None:
        raise BrokenPipeError

    for error, raised in ((None, BrokenPipeError), (KeyError("first"), KeyError)):
        (tmp_path / "metrics.jsonl").write_text("")
        with pytest.raises(raised), Follower(tmp_path / "metrics.jsonl", fail):
            (tmp_path / "metrics.jsonl").write_text('{"kind": "stop", "step": 4}\n')
            if error is not None:
                raise error
