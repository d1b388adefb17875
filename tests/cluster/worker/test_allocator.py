import json
import os
import platform
import subprocess
import sys

import pytest

from cluster.worker.allocator import ALLOCATOR_ENVIRONMENT

CODE = """
import json, os, sys
from cluster.worker.allocator import restart_with_tuned_allocator
restart_with_tuned_allocator()
print(json.dumps([os.getpid(), sys.argv[1:], {name: os.environ.get(name) for name in sys.argv[2:]}]))
"""


def start(**variables: str) -> tuple[int, list]:
    environment = {name: value for name, value in os.environ.items() if name not in ALLOCATOR_ENVIRONMENT} | variables
    command = [sys.executable, "-W", "error", "-c", CODE, "an argument", *ALLOCATOR_ENVIRONMENT]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        output = process.communicate()[0]
    assert process.returncode == 0
    return process.pid, json.loads(output)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_a_command_starts_itself_anew_once() -> None:
    pid, (own_pid, arguments, variables) = start()
    assert own_pid == pid  # replaced, not a child that a signal would miss
    assert arguments == ["an argument", *ALLOCATOR_ENVIRONMENT]
    assert variables == ALLOCATOR_ENVIRONMENT


def test_a_users_own_settings_stay() -> None:
    _, (_, _, variables) = start(MALLOC_TOP_PAD_="4096")
    assert variables == dict.fromkeys(ALLOCATOR_ENVIRONMENT) | {"MALLOC_TOP_PAD_": "4096"}
