"""What a person sees of a run while it runs."""

import contextlib
import dataclasses
import itertools
import os
import pty
import sys
from collections.abc import Iterator, Sequence

import pytest

from cluster.run.run_log import Evaluated, Line, Resumed, Started, Steps, Warned
from cluster.run.terminal import Terminal

STEP = Steps(
    step=1,
    samples_seen=9,
    epoch=0.1,
    loss=1.0,
    top1=0.5,
    learning_rate=0.1,
    images_per_second=9.0,
    data_wait_fraction=0.0,
    eta_seconds=9.0,
    losses=[1.0],
)
START = Started(step=0, world_size=1)
VAL = Evaluated(step=9, split="val", num_samples=50, loss=1.0, top1=0.5, top5=1.0)


def steps(count: int, seconds: float = 1.0, first: int = 1, **fields) -> list[Line]:
    """Return lines of steps, some seconds apart."""
    return [
        dataclasses.replace(STEP, step=number, time=number * seconds, **fields)
        for number in range(first, first + count)
    ]


def shown(capsys, lines: Sequence[Line], total_steps: int = 9999, **options) -> list[str]:
    """Return what is printed of a log, where standard output is no terminal."""
    with Terminal(total_steps, **options) as terminal:
        for line in lines:
            terminal.see(line)
    return capsys.readouterr().out.splitlines()


def steps_of(lines: Sequence[str]) -> list[int]:
    return [int(line.split()[1].partition("/")[0]) for line in lines if line.startswith("step ")]


def test_a_long_run_is_told_its_time_once_after_its_first_steps(capsys):
    etas = [1e5, 1e5, 7000, 6060, 6000, 5000]
    lines = [dataclasses.replace(STEP, step=number, eta_seconds=eta) for number, eta in enumerate(etas, 1)]
    output = shown(capsys, [START, *lines], advice="fewer epochs")
    assert output[4] == "at this pace the run needs another 1:41:00; shorter with fewer epochs"
    assert sum("at this pace" in line for line in output) == 1


@pytest.mark.parametrize("etas", [[9000, 9000, 900, 599, 9000], [9000, 9000, 9000]], ids=["short", "not known yet"])
def test_a_short_run_is_not(etas, capsys):
    lines = [dataclasses.replace(STEP, step=number, eta_seconds=eta) for number, eta in enumerate(etas, 1)]
    output = shown(capsys, [START, *lines], advice="fewer epochs")
    assert len(output) == len(etas) and not any("at this pace" in line for line in output)


def test_a_log_gets_the_first_steps_then_one_every_ten_seconds_and_the_last(capsys):
    assert steps_of(shown(capsys, [START, *steps(36)], total_steps=36)) == [1, 2, 3, 4, 14, 24, 34, 36]


def test_lines_become_rarer_up_to_one_a_minute(capsys):
    seen = steps_of(shown(capsys, [START, *steps(500, seconds=30.0)]))
    assert {later - earlier for earlier, later in itertools.pairwise(seen[-9:-1])} == {2}
    middle = [number * 30 for number in seen if 20 * 60 <= number * 30 <= 40 * 60]
    assert {later - earlier for earlier, later in itertools.pairwise(middle)} <= {30, 60}


def test_the_latest_steps_are_shown_at_the_end_if_they_were_not(capsys):
    assert steps_of(shown(capsys, [START, *steps(9)])) == [1, 2, 3, 4, 9]


def test_what_happens_is_always_shown_after_the_steps_before(capsys):
    warning = Warned(message="a picture was replaced")
    output = shown(capsys, [START, *steps(6), VAL, warning, *steps(2, first=7)])
    assert [line[:9] for line in output if not _is_step(line)] == ["warning: "]
    assert [line.split()[1] for line in output if _is_step(line)] == [f"{n}/9999" for n in (1, 2, 3, 4, 6, VAL.step, 8)]


def test_steps_that_are_rolled_back_are_not_shown(capsys):
    output = shown(capsys, [START, *steps(9), Resumed(step=5), Started(step=5, world_size=1), *steps(5, first=6)])
    assert steps_of(output) == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert output[4].endswith("resumed from a checkpoint")


@pytest.mark.parametrize("seconds", [1.0, 45.0], ids=["quick steps", "slow steps"])
def test_an_input_bound_run_is_told_so_once_until_it_has_passed(seconds, capsys):
    waiting = {"data_wait_fraction": 0.38}
    lines = [
        START,
        *steps(4, seconds, data_wait_fraction=0.9),  # a loader that has only begun
        *steps(40, seconds, first=5),
        *steps(60, seconds, first=45, **waiting),
        *steps(60, seconds, first=105, data_wait_fraction=0.08),  # about the limit: it has not passed yet
        *steps(60, seconds, first=165, **waiting),
        *steps(60, seconds, first=225),
        *steps(60, seconds, first=285, **waiting),
    ]
    output = shown(capsys, lines, bench="python -m pipeline.bench DATA")
    verdicts = [line for line in output if line.startswith("input-bound")]
    assert len(verdicts) == 2
    assert verdicts[0].endswith(
        "of the step waits for data; `python -m pipeline.bench DATA` says which stage holds it up"
    )
    share = int(verdicts[0].split()[1].rstrip("%"))
    assert 10 < share <= 38
    marked = steps_of([line for line in output if "  input-bound: data wait " in line])
    assert marked and all(45 < number < 260 or number > 285 for number in marked)


def _is_step(line: str) -> bool:
    return line.startswith("step ")


@contextlib.contextmanager
def screen(monkeypatch) -> Iterator[list[str]]:
    """Let standard output be a terminal of 60 columns while the block runs; then its lines are in the list."""
    master, slave = pty.openpty()
    lines: list[str] = []
    with monkeypatch.context() as patched, os.fdopen(slave, "w") as stream:
        patched.setenv("COLUMNS", "60")
        patched.setattr(sys, "stdout", stream)
        yield lines
    lines += _read_to_end(master).decode().split("\r\n")
    os.close(master)


def _read_to_end(master: int) -> bytes:
    """Return all that was written to a terminal whose other side is closed; one read may return a part of it."""
    content = b""
    with contextlib.suppress(OSError):  # EIO is the end
        while True:
            content += os.read(master, 100_000)
    return content


def test_a_terminal_has_one_line_of_steps_that_is_renewed(monkeypatch):
    with screen(monkeypatch) as lines, Terminal(99) as terminal:
        for line in [START, *steps(7), VAL, *steps(2, first=8)]:
            terminal.see(line)
    left = [line.rpartition("\x1b[K")[2] for line in lines]  # what stays on the screen
    assert [line[:9] for line in left] == ["step  7/9", "step  9/9", "step  9/9", ""]
    assert "loss" in left[0] and "val: loss" in left[1] and "ETA" in left[2]
    renewals = [text for line in lines for text in line.split("\r\x1b[K") if "img/s" in text]
    assert len(renewals) == 11
    assert all("ETA" in text for text in renewals)  # what matters most has room in any case
    assert sum(len(text) < 60 for text in renewals) >= 9


def test_others_write_on_lines_of_their_own(monkeypatch):
    with screen(monkeypatch) as shown, Terminal(99) as terminal:
        terminal.see(STEP)
        print("a worker was lost")  # noqa: T201
        terminal.see(dataclasses.replace(STEP, step=2))
    lines = [line.rpartition("\x1b[K")[2] for line in shown]
    assert lines[0] == "a worker was lost" and lines[1].startswith("step  2/99")
