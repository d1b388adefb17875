"""What all commands share."""

import signal
import subprocess
import sys

import pytest

from pipeline.paths import CHECKOUT

COMMAND = """
import errno, os, sys, time
from pipeline.command import InputError, run_command

def main(argv):
    {body}

run_command(main)
"""


def _start(body: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", COMMAND.format(body=body)]
    return subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ("return 0", 0, ""),
        ("return 1", 1, ""),
        ("raise InputError('one; do this\\ntwo; do that')", 2, "error: one; do this\nerror: two; do that\n"),
        ("open('/nowhere/file')", 2, "error: No such file or directory: /nowhere/file\n"),
        ("raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))", 2, "error: No space left on device\n"),
        ("raise KeyboardInterrupt", 130, "interrupted\n"),
    ],
)
def test_the_exit_status_says_how_a_command_ended(body, status, said):
    process = _start(body)
    output, errors = process.communicate()
    assert (process.returncode, output, errors) == (status, "", said)


def test_a_bug_keeps_its_traceback():
    process = _start("return 1 // 0")
    _, errors = process.communicate()
    assert process.returncode == 1 and "ZeroDivisionError" in errors


@pytest.mark.parametrize(
    ("number", "status", "said"),
    [(signal.SIGINT, 130, "interrupted\n"), (signal.SIGTERM, 143, "terminated\n")],
)
def test_a_signal_has_its_status(number, status, said):
    process = _start("sys.stdout.write('ready\\n'); sys.stdout.flush(); time.sleep(60)")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, errors = process.communicate()
    assert (process.returncode, errors) == (status, said)


def test_a_reader_that_has_ended_has_its_status():
    process = _start("[sys.stdout.write('line\\n' * 1000) for _ in range(1000)]")
    process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    process.communicate()
    assert process.returncode == 141
