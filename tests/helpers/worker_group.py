"""Processes of torch.distributed that all call one function of a test file.

Each is `python worker_group.py RANK WORLD_SIZE PORT FILE FUNCTION ARGUMENT...`; the arguments are strings.
"""

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch.distributed as dist

from pipeline.paths import CHECKOUT


def run_group(world_size: int, file: str, function: str, *arguments: str | Path) -> list[str]:
    """Call `function(*arguments)` of a file in that many processes; return what each printed, by rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    paths = os.pathsep.join([str(CHECKOUT), str(Path(__file__).parent)])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": paths}
    commands = [
        [sys.executable, "-W", "error", __file__, *map(str, (rank, world_size, port, file, function, *arguments))]
        for rank in range(world_size)
    ]
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for command in commands]
    printed = [process.communicate(timeout=400)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * world_size
    return printed


def main() -> None:
    rank, world_size, port = (int(argument) for argument in sys.argv[1:4])
    file, function, *arguments = sys.argv[4:]
    specification = importlib.util.spec_from_file_location("called", file)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    getattr(module, function)(*arguments)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
